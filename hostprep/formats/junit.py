"""JUnit's XML, for a CI system: a test suite per check, a test case per finding."""

from __future__ import annotations

from hostprep.model import Status
from hostprep.render import checks, line
from hostprep.report import Report


def render(report: Report) -> str:
    """A test suite per check, a test case per finding; unknown is an error, advisory and waived ones are skipped."""
    from xml.sax.saxutils import escape, quoteattr

    suites = []
    for check in checks(report):
        findings = [f for f in report.findings if f.check == check]
        cases = []
        for f in findings:
            body = ""
            if f.status not in (Status.PASS, Status.VOLATILE):
                kind = "skipped" if not f.counts else "error" if f.status is Status.UNKNOWN else "failure"
                said = f"{f.message}\n{f.fix}".strip()
                title = f"waived: {f.waived}" if f.waived else f.message
                body = f"<{kind} message={quoteattr(line(title))}>{escape(_xml(said))}</{kind}>"
            names = f"classname={quoteattr(line(f'hostprep.{check}'))} name={quoteattr(line(f.key))}"
            cases.append(f"    <testcase {names}>{body}</testcase>")
        counts = [sum(f"<{kind} " in case for case in cases) for kind in ("failure", "error", "skipped")]
        words = ("failures", "errors", "skipped")
        numbers = " ".join(f'{word}="{count}"' for word, count in zip(words, counts, strict=True))
        numbers = f'tests="{len(cases)}" {numbers} time="{report.durations.get(check, 0) / 1000:.3f}"'
        suites.append("\n".join([f"  <testsuite name={quoteattr(line(check))} {numbers}>", *cases, "  </testsuite>"]))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="hostprep">\n'
        + "\n".join(suites)
        + "\n</testsuites>\n"
    )


def _xml(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
