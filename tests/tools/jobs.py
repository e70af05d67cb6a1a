"""Jobs of a study that run in this process."""


def run_here(jobs, folder):
    """Run jobs in this process, and keep nothing."""
    return {name: job() for name, job in jobs.items()}
