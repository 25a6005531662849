"""check: does an adapter fit its base, and will others load it. Many of them at once, on all cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from lora_hub.base_model import base_files
from lora_hub.checked_sources import Source, place_of, read_source
from lora_hub.checking.base import Base, read_base
from lora_hub.checking.catalogue import Selection, catalogue
from lora_hub.checking.check import Check
from lora_hub.checking.finding import Report
from lora_hub.checking.run import run_checks
from lora_hub.checking.settings import Settings
from lora_hub.checking.subject import Subject
from lora_hub.errors import UsageError
from lora_hub.reference import AdapterRef, PathLike
from lora_hub.registry.locate import RegistryLike

WORTH_PROCESSES = 24  # adapters; for fewer, starting a process takes longer than the check
_AT_ONCE = 4  # adapters that a process is given together


def check(
    source: PathLike | AdapterRef,
    base: PathLike | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    require_base: bool = False,
    sample: bool = False,
    registry: RegistryLike = None,
) -> Report:
    """Return what is wrong with the adapter *source*, alone and on *base*, of which no weights are read.

    An adapter that is malformed gives a report with errors. Nothing is pulled into the store, and no trust is needed:
    a check applies nothing.

    Args:
        source: A directory (a path, or a string that starts with ``.`` or ``/``, or ends with ``/``), or a reference.
        base: A directory with a model in safetensors, or a repository on the Hub, ``org/model[@revision]``, of which at
            most six requests read less than 2 MB. None checks the adapter alone.
        select: Codes of rules, or beginnings of codes: only these.
        ignore: Not these.
        require_base: Whether that which cannot be decided about the base is an error.
        sample: Whether a base on the Hub may be asked for every header and for some weights, up to 64 requests more, to
            compare it with the adapter's fingerprint. Of a base on this machine they are always read.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.

    Raises:
        UsageError: *select* or *ignore* names no rule.
        NotFoundError: There is no such directory, reference or base.
        MalformedError: The base is malformed.
        RegistryError: The registry or the network refused.
    """
    checks = catalogue()
    selection = Selection.of(select, ignore, checks)
    subject = read_source(Source(place=place_of(source), registry=registry))
    known = None if base is None else read_base(base_files(base), wanted=_wanted(subject), sample=sample)
    return run_checks(_against(subject, known, requires_base=require_base), checks, selection)


def check_all(
    sources: Sequence[Source],
    base: PathLike | None = None,
    *,
    settings: Settings | None = None,
    jobs: int = 1,
) -> Iterator[Report]:
    """Yield what `check` returns for each of *sources*, in their order; the base is read once.

    With more than one of *jobs*, many adapters are checked in as many processes, each of which imports the caller's
    main module (``spawn``): only a script that guards what it runs with ``if __name__ == "__main__"`` may ask for it.

    Raises:
        UsageError: The settings name no rule.
        LoraHubError: As `check`; what was yielded before stays true.
    """
    settled = settings or Settings()
    checker = _Checker.of(settled, _read_base(sources, base, sample=settled.samples))
    known = checker.base
    if jobs <= 1 or len(sources) < WORTH_PROCESSES or (known is not None and known.repo is not None):
        # A client of the Hub belongs to one process; what is known of a base there is asked of it.
        yield from map(checker.check, sources)
        return
    with ProcessPoolExecutor(
        min(jobs, len(sources)), mp_context=get_context("spawn"), initializer=_begin, initargs=(settled, known)
    ) as pool:
        yield from pool.map(_check_here, sources, chunksize=_AT_ONCE)


def _wanted(subject: Subject) -> tuple[str, ...]:
    return (*subject.paths, *subject.heads)


def _read_base(sources: Sequence[Source], base: PathLike | None, *, sample: bool) -> Base | None:
    """Return what is known of the base; of a large one on the Hub, what the first adapter needs of it."""
    if base is None:
        return None
    files = base_files(base)
    if files.repo is None or not sources:
        return read_base(files)
    return read_base(files, wanted=_wanted(read_source(sources[0])), sample=sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checker:
    """Checks one adapter after another, against one base and by one set of rules."""

    settings: Settings
    checks: dict[str, Check]
    selection: Selection
    base: Base | None

    @classmethod
    def of(cls, settings: Settings, base: Base | None) -> _Checker:
        checks = catalogue()
        selection = Selection.of(settings.select, settings.ignore, checks)
        for codes in settings.per_path.values():
            Selection.of((), codes, checks)
        return cls(settings=settings, checks=checks, selection=selection, base=base)

    def check(self, source: Source) -> Report:
        subject = _against(read_source(source), self.base, requires_base=self.settings.requires_base)
        here = self.settings.ignored_at(str(source))
        selection = self.selection
        if here:
            selection = Selection.of(self.settings.select, (*self.settings.ignore, *here), self.checks)
        return run_checks(subject, self.checks, selection)


_here: list[_Checker] = []  # of this process


def _begin(settings: Settings, base: Base | None) -> None:
    _here[:] = [_Checker.of(settings, base)]


def _check_here(source: Source) -> Report:
    return _here[0].check(source)


def _against(subject: Subject, base: Base | None, *, requires_base: bool) -> Subject:
    return subject if base is None else subject.against(base, requires_base=requires_base)


def settle(given: Settings, project: Settings) -> Settings:
    """Return *given*, and what *project* says where nothing was given; what is ignored adds up.

    Raises:
        UsageError: What cannot be decided about a base is an error, and no base is named.
    """
    base = given.base if given.base is not None else project.base
    settled = Settings(
        select=given.select or project.select,
        ignore=(*project.ignore, *given.ignore),
        fail_on=given.fail_on if given.fail_on is not None else project.fail_on,
        base=base,
        requires_base=given.requires_base or project.requires_base,
        samples=given.samples or project.samples,
        per_path=project.per_path,
    )
    if settled.requires_base and base is None:
        raise UsageError("a base is required, and none is named", hint="name it with --base")
    return settled
