"""Errors an administrator can act on. Anything else that is raised is a bug.

HostprepError          str() of it is one line fit for a terminal
|- UsageError          the command line asks for something that makes no sense       (exit 2)
|- ProfileError        the profile cannot be read or is not valid                    (exit 78)
|- StateError          hostprep's own files are damaged or could be written by others (exit 78)
|- NeedsRoot           this needs root                                               (exit 77)
|- Busy                another hostprep is changing this host                        (exit 75)
|- ReportUnusable      the published report cannot be relied on                      (exit 3)
|- OutputFailed        the answer could not be written where it should go            (exit 74)
|- HostError           the host would not answer: becomes an unknown reading
|  `- CommandFailed    a command ended with another exit status than 0
`- ChangeFailed        a change was attempted or refused, and did not happen         (exit 5)
"""

from __future__ import annotations


class HostprepError(Exception):
    """Base of every expected error: one line what is wrong, and in `hint` one line what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(HostprepError):
    """The command line asks for something that makes no sense."""


class ProfileError(HostprepError):
    """The profile is unreadable, not valid, or could be written by others.

    `problems` holds one `file:line:column: where: what` a line, all of them at once.
    """

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class StateError(HostprepError):
    """hostprep's own journal, lock or report is damaged, or could be written by others."""


class NeedsRoot(HostprepError):
    """Changing a host needs root."""


class Busy(HostprepError):
    """Another hostprep is changing this host."""


class ReportUnusable(HostprepError):
    """The published report is missing, stale, or of another boot, machine or profile.

    `reason` says it in a word of a short list (formats/prometheus.py), for those who count.
    """

    def __init__(self, message: str, hint: str = "", *, reason: str = "other") -> None:
        super().__init__(message, hint)
        self.reason = reason


class OutputFailed(HostprepError):
    """stdout, --output or the published report could not be written: whoever waits for it has no answer."""


class HostError(HostprepError):
    """The host would not answer: a file, command or system call failed or timed out.

    `code` is the errno, where the kernel gave one.
    """

    def __init__(self, message: str, hint: str = "", *, code: int = 0) -> None:
        super().__init__(message, hint)
        self.code = code


class CommandFailed(HostError):
    """A command ended with another exit status than 0; `output` is all that it said, stdout first."""

    def __init__(self, message: str, hint: str = "", *, status: int = 0, output: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.output = output


class ChangeFailed(HostprepError):
    """A change was attempted or refused, and did not happen.

    `stays` says what it leaves behind on the host that nothing takes back; empty where it leaves nothing.
    """

    def __init__(self, message: str, hint: str = "", *, stays: str = "") -> None:
        super().__init__(message, hint)
        self.stays = stays
