"""The sentence that a user reads when the agent cannot be reached: which socket, which mode, which cure."""

from __future__ import annotations

import errno
import os
import stat

_START = (
    "start one with `prov4ml-agent serve`, or run the script with `prov4ml-agent run -- python ...`, "
    "or name the socket of a running one in PROV4ML_AGENT_SOCKET"
)


def sentence(path: str, error: OSError) -> str:
    """Why there is no agent at path, and what to do about it."""
    return f"no agent at {path}: {_why(path, error)}. The training goes on; calls are sent when the agent is there."


def _why(path: str, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied ({_mode(path)}); join that group, or let the agent open the socket (--socket-mode 0666)"
        )
    if error.errno == errno.ENOENT:
        return f"no such socket; {_START}"
    if error.errno == errno.ECONNREFUSED:
        return f"nobody listens on it ({_mode(path)}); {_START}"
    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
        return "it has a full queue of callers; the agent is stopped or overloaded"
    if error.errno is None and "too long" in str(error):
        return f"a socket's path has at most 107 bytes, this one {len(os.fsencode(path))}; choose a shorter one"
    return f"{error.strerror or error}; {_START}"


def _mode(path: str) -> str:
    """The socket's mode and owner, or those of the nearest folder that can be looked at."""
    while True:
        try:
            found = os.stat(path)
        except OSError:
            parent = os.path.dirname(path)
            if parent == path or not parent:
                return "mode unknown"
            path = parent
            continue
        kind = "socket" if stat.S_ISSOCK(found.st_mode) else f"{path}:"
        return (
            f"{kind} mode {stat.S_IMODE(found.st_mode):04o}, owner {_user(found.st_uid)}, group {_group(found.st_gid)}"
        )


def _user(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def _group(gid: int) -> str:
    try:
        import grp

        return grp.getgrgid(gid).gr_name
    except (ImportError, KeyError):
        return str(gid)
