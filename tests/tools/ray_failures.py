"""Failures of clients as Flower's simulation on Ray reports them."""

CAUSE = "The above exception was the direct cause of the following exception:"
CONTEXT = "During handling of the above exception, another exception occurred:"

_TRACE = """\x1b[36mray::ClientAppActor.run()\x1b[39m (pid={pid}, ip=1.2.3.4, actor_id={pid:x}ab)
           ^^^^^^^^^^^^^^^^^
  File "{folder}/flwr/clientapp/client_app.py", line 161, in __call__
    return self._registered_funcs[full_name](message, context)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""


def on_ray(error, *parts, pid=17, folder="/usr/lib"):
    """Return a failure as a Ray worker reports it.

    Parameters
    ----------
    error : str
        The type of the last exception.
    *parts : str
        Each exception's text, with `CAUSE` or `CONTEXT` between it and the next one.
    pid : int
        The worker's process.
    folder : str
        Where the code is that raised them.
    """
    start = _TRACE.format(pid=pid, folder=folder)
    trace = "\n\n".join(one if one in (CAUSE, CONTEXT) else start + one for one in parts)
    return f"<class 'ray.exceptions.RayTaskError({error})'>:<'{trace}'>"
