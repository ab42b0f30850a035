"""A profile for people: how much of the time passed in which function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from common.profiler import LOOP, Profile

WAITING = "(waiting for events)"
IN_C = "(event loop, in C)"


def folded(profile: Profile) -> str:
    """The stacks in the format that flame graphs are made of: one a line, with the number of looks that saw it."""
    return "".join(f"{stack} {count}\n" for stack, count in sorted(profile.folded.items()))


def shown(process: str, profile: Profile, top: int) -> str:
    """A summary, and the ``top`` functions by their own time."""
    seconds = max(profile.seconds, 1e-9)
    lines = [
        f"{process}: {profile.looks} looks in {profile.seconds:.1f} s",
        f"processor: main thread {profile.main / seconds:.0%}, other threads {profile.others / seconds:.0%}",
        "",
        "  self   total  function",
    ]
    looks = max(1, profile.looks)
    own, total = shares(profile.folded)
    for name, count in _split(own, profile).most_common(top):
        if count >= 0.5:
            inside = count if name in (WAITING, IN_C) else total[name]
            lines.append(f"{count / looks:6.1%}  {inside / looks:6.1%}  {name}")
    return "\n".join(lines)


def shares(stacks: Mapping[str, int]) -> tuple[Counter[str], Counter[str]]:
    """In how many looks each function was the innermost one, and in how many it was there at all."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for stack, count in stacks.items():
        functions = stack.split(";")
        own[functions[-1]] += count
        for function in set(functions):
            total[function] += count
    return own, total


def _split(own: Counter[str], profile: Profile) -> Counter[str]:
    """A loop without a function waits, or does work of its own: the processor time that no function accounts for."""
    split: Counter[str] = Counter(own)
    alone = split.pop(LOOP, 0)
    used = profile.main / max(profile.seconds, 1e-9) * profile.looks
    split[IN_C] = round(min(alone, max(0, used - (profile.looks - alone))))
    split[WAITING] = alone - split[IN_C]
    return split
