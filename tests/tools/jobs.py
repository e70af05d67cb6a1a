"""Jobs of a study that run in this process."""


def run_here(jobs, folder):
    """Run jobs in this process, and keep nothing."""
    return {key: job() for key, (_, job) in jobs.items()}
