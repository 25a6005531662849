"""Which version a reference means: of those that it selects, the newest that may be used.

A floating reference passes over what is not trusted, what is yanked and what the policy revokes. It never goes below
the newest version that was accepted before, so that nobody is led back to an old one by hiding or spoiling a new one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from lora_hub.documents.authorization import Decision, counted
from lora_hub.documents.bundle import Bundle
from lora_hub.documents.fields import printable
from lora_hub.documents.signers import Signer
from lora_hub.documents.statement import Yank
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError, NotFoundError, PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import Place, find_digest, list_adapter, none_selected, selected, vanished
from lora_hub.registry.proof import Evidence, Verdict, judge, prove
from lora_hub.registry.published import Published, look_up
from lora_hub.registry.registry import Listing, Registry
from lora_hub.registry.terms import Terms
from lora_hub.version import Version

LAST_SEEN = "it was when it was last seen"  # why something is yanked of which only that is known
_TRIES = 16  # versions that are looked at before a floating reference gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a reference means in a registry.

    Attributes:
        published: The version.
        verdict: Whether it may be used, and why.
        skipped: The newest version that was passed over for it.
        skipped_because: Why.
        yanked: Why it was yanked, if it was and is meant all the same.
    """

    published: Published
    verdict: Verdict
    skipped: AdapterRef | None = None
    skipped_because: str = ""
    yanked: str | None = None


def resolve(reference: AdapterRef, registry: Registry, terms: Terms, expected: str | None = None) -> Choice:
    """Return the version of *registry* that *reference* means; whether it may be used says its verdict.

    Args:
        reference: What was asked for.
        registry: Where.
        terms: Whom to trust, and what was seen before.
        expected: The digest that the caller named.

    Raises:
        NotFoundError: No such adapter, or none of its versions is selected; the message lists what there is.
        PolicyError: What was pinned or accepted before is not there any more.
        IntegrityError: A signature is not over what is there, or that is another adapter than was asked for.
    """
    return _Resolution(reference, registry, terms, expected or reference.digest).choose()


def resolve_trusted(reference: AdapterRef, registry: Registry, terms: Terms, expected: str | None = None) -> Choice:
    """Return what `resolve` returns; raise `UntrustedError` or `PolicyError` if it may not be used."""
    choice = resolve(reference, registry, terms, expected)
    choice.verdict.decision.require()
    return choice


def resolve_at(exact: AdapterRef, commit: str, registry: Registry, terms: Terms, expected: str) -> Choice:
    """Return the exact version that lies at *commit*, which no tag can move; as `resolve` does it."""
    resolution = _Resolution(exact, registry, terms, expected)
    # Only whoever trusts signers can be told by them that it is yanked.
    is_told = terms.policy.rule(exact.name) is not None
    return resolution.exactly((exact, commit), registry.listing(exact) if is_told else Listing())


@dataclass(slots=True)
class _Resolution:
    reference: AdapterRef
    registry: Registry
    terms: Terms
    expected: str | None
    refusals: dict[AdapterRef, LoraHubError] = field(default_factory=dict)
    withdrawn: set[AdapterRef] = field(default_factory=set)

    def choose(self) -> Choice:
        reference, registry = self.reference, self.registry
        if reference.commit is not None:
            return self.exactly((reference, reference.commit), Listing())
        listing = list_adapter(registry, reference)
        found = find_digest(registry, reference, listing, self.expected)
        if found is not None:
            return self._chosen(found, self._judge(found), listing)
        places = selected(reference, listing, self.terms.policy.pins_of(registry.url, reference.name))
        if reference.version is not None and places:
            return self.exactly(places[0], listing)
        choice = self._newest(places, listing)
        if choice is None:
            self._check_floor(None, listing)
            error = none_selected(registry, reference, listing)
            raise vanished(registry, reference, self._known_digest(reference), error)
        if choice.verdict.decision.refusal is None:
            self._check_floor(choice.published.exact.version, listing)
        return choice

    def exactly(self, place: Place, listing: Listing) -> Choice:
        published = self._look_up(place)
        return self._chosen(published, self._judge(published), listing)

    def _chosen(self, published: Published, verdict: Verdict, listing: Listing) -> Choice:
        is_used = verdict.decision.refusal is None
        yanked = self._yanked(published, verdict, listing) if is_used else None
        return Choice(published=published, verdict=verdict, yanked=yanked)

    def _newest(self, places: list[Place], listing: Listing) -> Choice | None:
        """Return the newest that may be used, or else the newest with the reason why it may not."""
        refused: Choice | None = None
        for place in [place for place in places if self._may_be_trusted(place[0])][:_TRIES]:
            published = self._look_up(place)
            verdict = self._judge(published)
            if verdict.decision.is_alarm:
                return Choice(published=published, verdict=verdict)
            yanked = self._yanked(published, verdict, listing) if verdict.decision.refusal is None else None
            refusal = verdict.decision.refusal or self._not_meant(published, verdict, yanked)
            if refusal is None:
                newer = places[0][0] if place != places[0] else None
                because = self.refusals[newer].message if newer in self.refusals else "it is not pinned"
                return Choice(
                    published=published, verdict=verdict, skipped=newer, skipped_because=because, yanked=yanked
                )
            self.refusals[place[0]] = refusal
            if verdict.decision.is_withdrawn or yanked is not None:
                self.withdrawn.add(place[0])
            refused = refused or Choice(published=published, verdict=_refused(verdict, refusal))
        if refused is None and places:
            published = self._look_up(places[0])
            refused = Choice(published=published, verdict=self._judge(published))
        return refused

    def _not_meant(self, published: Published, verdict: Verdict, yanked: str | None) -> LoraHubError | None:
        """Return why a floating reference does not mean *published*, though it may be used."""
        exact = published.exact
        if exact.version is not None and not self.reference.selects(exact.version):
            return PolicyError(
                f"the newest commit of `{exact.name}` is `{exact}`, which `{self.reference}` does not mean",
                hint="name it exactly if you want it",
            )
        if yanked is not None and not verdict.decision.is_pinned:
            return PolicyError(f"`{exact}` was yanked: {yanked}", hint="name it exactly if you must have it")
        return None

    def _may_be_trusted(self, exact: AdapterRef) -> bool:
        policy, url = self.terms.policy, self.registry.url
        is_covered = not self.terms.is_foreign(self.registry) or policy.rule(exact.name) is not None
        return is_covered or policy.expected(url, exact, self.expected) is not None

    def _check_floor(self, chosen: Version | None, listing: Listing) -> None:
        """Raise `PolicyError` if a newer version was accepted before, and neither publisher nor policy withdrew it."""
        known = [v for v in self._known_versions() if self.reference.selects(v) and (chosen is None or v > chosen)]
        for version in sorted(known, reverse=True) if self.expected is None else ():
            exact = self.reference.at(version)
            refusal = self.refusals.get(exact)
            if exact in self.withdrawn or not self._may_be_trusted(exact):
                continue  # by its publisher or by this user: that is how it was meant
            digest = self._known_digest(exact)
            if version not in listing.versions:
                error = NotFoundError(f"`{self.registry.url}` has no `{exact}`", hint="ask its publisher")
                raise vanished(self.registry, exact, digest, error)
            said = f": {refusal.message}" if refusal else ""
            raise PolicyError(
                f"`{self.reference}` would mean `{self.reference.at(chosen) if chosen else 'nothing'}`, but "
                f"`{exact}` was accepted before and is refused now{said}",
                hint=f"ask its publisher what happened to {exact}; to go back all the same, name the version exactly",
            )

    def _known_versions(self) -> set[Version]:
        url = self.registry.url
        pins = self.terms.policy.pins_of(url, self.reference.name)
        seen = self.terms.memory.read().versions(url, self.reference)
        yanked = {version for version, sight in seen.items() if sight.is_yanked}
        return ({v for pin in pins if (v := pin.reference.version) is not None} | set(seen)) - yanked

    def _known_digest(self, exact: AdapterRef) -> str | None:
        url = self.registry.url
        return self.terms.policy.expected(url, exact, self.expected) or self.terms.memory.digest(url, exact)

    def _look_up(self, place: Place) -> Published:
        try:
            return look_up(self.registry, *place)
        except NotFoundError as error:
            if place[0].commit is None:
                raise
            raise vanished(self.registry, place[0], self._known_digest(place[0]), error) from error

    def _judge(self, published: Published) -> Verdict:
        """Return whether *published* may be used; raise `IntegrityError` if it may, but is not what was asked for."""
        verdict = judge_published(published, self.registry, self.terms, named=self.expected)
        if verdict.decision.refusal is None:
            published.check_identity()
        return verdict

    # Yanked

    def _yanked(self, published: Published, verdict: Verdict, listing: Listing) -> str | None:
        """Return why *published* was yanked, if those who may sign it say so, or said so before."""
        exact, url, memory = published.exact, self.registry.url, self.terms.memory
        rule = verdict.decision.rule
        if exact.version is None or (rule is None and self.terms.is_foreign(self.registry)):
            return None
        sight = memory.read().sight(url, exact)
        statements = self._yank_statements(exact, published.digest, listing)
        signers = {signer for signer, _ in statements}
        if rule is not None and len(counted(self.terms.policy, rule, signers, self.terms.now)[0]) < rule.threshold:
            statements = []
        if statements and not self.terms.is_strict:
            memory.remember(url, exact, published.digest, is_yanked=True)
        if statements:
            return printable(statements[0][1].reason or "no reason was given")
        return LAST_SEEN if sight is not None and sight.is_yanked else None

    def _yank_statements(self, exact: AdapterRef, digest: str, listing: Listing) -> list[tuple[Signer, Yank]]:
        """Return the statements that yank *exact*, and who made them: where a rule names keys, only with theirs."""
        rule = self.terms.policy.rule(exact.name)
        keys = self.terms.policy.public_keys(rule) if rule else {}
        found = []
        for content in self.registry.yanks(exact, listing):
            with contextlib.suppress(MalformedError, IntegrityError):  # what is not proven means nothing
                signer, payload = prove(content, keys, rule.identities if rule else ())
                payload = Bundle.parse(content).payload if rule is None else payload
                yank = Yank.parse(payload) if payload is not None else None
                if yank is not None and (yank.reference, yank.digest) == (exact, digest):
                    found.append((signer, yank))
        return found


def _refused(verdict: Verdict, refusal: LoraHubError) -> Verdict:
    decision = Decision(reason=refusal.message, rule=verdict.decision.rule, refusal=refusal)
    return Verdict(decision=decision, bundles=verdict.bundles)


def judge_published(published: Published, registry: Registry, terms: Terms, *, named: str | None) -> Verdict:
    """Return whether *published* may be used: unless a digest says what is meant, it must be what it was before."""
    evidence = Evidence(
        registry=registry.url,
        is_remote=terms.is_foreign(registry),
        reference=published.reference,
        digest=published.digest,
        manifest=lambda: published.document,
        bundles=published.bundles,
        source=published.source,
    )
    verdict = judge(evidence, terms.policy, terms.project, terms.now, named=named)
    if terms.policy.expected(registry.url, published.reference, named) is not None:
        return verdict
    try:
        terms.memory.check_unchanged(registry.url, published.reference, published.digest)
        if verdict.decision.refusal is None:
            terms.memory.check_unchanged(registry.url, published.exact, published.digest)
    except PolicyError as error:
        decision = Decision(reason=error.message, rule=verdict.decision.rule, refusal=error, is_alarm=True)
        return Verdict(decision=decision, bundles={})
    return verdict
