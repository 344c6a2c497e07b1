"""What runs each command of the documentation, or why nothing does; run as a program, this prints it all."""

from __future__ import annotations

from command_words import flag_names, verb_of
from documented_pages import Block, Command, blocks_of, described_commands, mentions_of, pages, reasons_of

# What takes minutes even then, or processes of its own.
SLOW = ("quickstart", "report", "compare", "sweep", "torchrun")
# Commands in the descriptions of configurations that nothing runs.
DESCRIBED = {
    "table1.json": "days of two cores, hours of a GPU; tests/test_sweep_plans.py plans it",
    "table2.json": "days of two cores, hours of a GPU; tests/test_sweep_plans.py plans it",
    "vivit.json": "days of two cores, hours of a GPU; tests/test_sweep_plans.py plans it",
    "search.json": "days of two cores, half an hour of a GPU; tests/test_search_settings.py reads it",
    "initialisation.json": "hours of two cores; tests/test_sweep_plans.py plans it",
    "pretraining_scale.json": "hours of two cores; tests/test_sweep_plans.py plans it",
    "initialisation_resnet34.json": "hours of a GPU; tests/test_sweep_plans.py plans it",
    "quick.json": "docs/sweeps.md runs it with one worker",
    "weights fetch": "a download; tests/test_downloads.py fetches from a server of its own",
}


def is_slow(command: Command) -> bool:
    return verb_of(command.words).removeprefix("cryo-monai ").split(" ")[0] in SLOW


def status(block: Block, command: Command) -> str:
    """What runs a command of a block, or why nothing does."""
    reason = block.reason or block.reason_against(command)
    if reason:
        return f"not run: {reason}"
    if block.test:
        return f"run by {block.test}"
    slow = ", slow" if is_slow(command) else ""
    return f"run{' small' * (block.marker == 'run small')} by tests/test_documented_commands.py{slow}"


def executed() -> dict[str, set[str]]:
    """Flags that are run with each verb, in any block."""
    found: dict[str, set[str]] = {}
    for page in pages():
        for block in blocks_of(page):
            for command in block.commands:
                if block.marker and status(block, command).startswith("run"):
                    found.setdefault(verb_of(command.words), set()).update(flag_names(command.words))
    return found


def mention_status(command: Command, reasons: dict[str, str], run: dict[str, set[str]]) -> str:
    """Whether a command in a text has its verb and its flags in blocks that are run, or why not; else nothing."""
    verb = verb_of(command.words)
    if verb == "cryo-monai" or "--help" in command.words:
        return "not run: tests/test_main.py asks for help"
    flags = [flags for name, flags in run.items() if f"{name} ".startswith(f"{verb} ")]
    if flags and flag_names(command.words) <= set().union(*flags):
        return "its verb and flags are run in blocks"
    return next((f"not run: {reason}" for text, reason in reasons.items() if text in command.text), "")


def list_of_commands() -> str:
    """A Markdown table of all commands, with what runs each or why nothing does."""
    rows = []
    done = executed()
    for page in pages():
        rows += [(c, status(block, c)) for block in blocks_of(page) for c in block.commands if c.words[0] != "cd"]
        rows += [(c, mention_status(c, dict(reasons_of(page)), done)) for c in mentions_of(page)]
    rows += [(command, mention_status(command, DESCRIBED, done)) for command in described_commands()]
    cells = [f"| {c.place} | `{c.text.replace('|', chr(92) + '|')}` | {said or 'NOTHING'} |" for c, said in rows]
    return "\n".join(["| where | command | run by |", "|---|---|---|", *cells])


if __name__ == "__main__":
    print(list_of_commands())
