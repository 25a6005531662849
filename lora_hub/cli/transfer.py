"""push, pull, lock: between directories, registries and the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import ask_passphrase, byte_progress, json_option, key_option, print_data, registry_option, say

if TYPE_CHECKING:
    from lora_hub.registry.pull import Pulled
    from lora_hub.registry.resolve import Choice

lockfile_option = click.option(
    "--lockfile",
    metavar="FILE",
    default="lora-hub.lock",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="The lock file.",
)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.argument("ref")
@registry_option
@click.option("--private", is_flag=True, help="Make the repository on the Hub a private one, if it must be made.")
@key_option
@click.option("--allow", "allowed", metavar="LH…", multiple=True, help="A check that it may break; it is published.")
@json_option
def push(
    directory: str,
    ref: str,
    registry: str | None,
    private: bool,
    key: str | None,
    allowed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Publish the adapter in DIRECTORY as the immutable version REF (org/task@1.0.0), signed if you have a key.

    What `lora-hub check` finds an error in is refused.

    The token is that of `hf auth login`, or HF_TOKEN. What no rule of your trust policy covers is pinned there.
    """
    from lora_hub import api

    done = api.push(
        directory, ref, registry=registry, private=private, key=key, passphrase=ask_passphrase, allow=_codes(allowed)
    )
    for name in done.left_out:
        say(f"{name} in {directory} is no signature of this version, and was left out")
    if not done.is_new and not done.signers:
        say("it was published without a signature, and a published version never changes")
    elif not done.signers:
        say(f"it is not signed: `lora-hub key generate {done.reference.org}` makes a key for the next version")
    for pin in done.replaced:
        say(f"your pin of {pin.reference} was {pin.digest}, and is this version now")
    document = {
        "reference": str(done.reference),
        "digest": done.digest,
        "registry": done.registry,
        "commit": done.commit,
        "signers": [f"key {fingerprint}" for fingerprint in done.signers],
        "status": "published" if done.is_new else "already published",
    }
    print_data(document, lambda: f"{done.reference}  {done.digest}  {document['status']}", as_json=as_json)


@click.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@registry_option
@click.option("--digest", metavar="sha256:HEX", help="What the manifest must have; naming it is trust enough.")
@click.option("--offline", is_flag=True, help="Use no network, as with HF_HUB_OFFLINE=1.")
@click.option("--locked", is_flag=True, help="Bring exactly what the lock file says: all of it, or each REF.")
@lockfile_option
@json_option
def pull(
    refs: tuple[str, ...],
    registry: str | None,
    digest: str | None,
    offline: bool,
    locked: bool,
    lockfile: str,
    as_json: bool,
) -> None:
    """Bring each REF into the local store, check every byte, and print where it lies.

    REF is org/task (the newest release), org/task@1.2.0, @^1.2, @1, @<commit> or @sha256:<digest>. What comes from the
    Hub or an object store must be signed by somebody whom your policy trusts for it (`lora-hub trust add`), pinned
    (`trust pin`), named by its digest, or locked.
    """
    from lora_hub import api
    from lora_hub.errors import UsageError
    from lora_hub.reference import AdapterRef

    if locked and digest:
        raise UsageError("--locked and --digest contradict each other", hint="the lock file has the digests")
    if not refs and not locked:
        raise UsageError("no REF is named", hint="name one, or pull what is locked with --locked")
    if digest and len(refs) != 1:
        raise UsageError("--digest is that of one REF", hint="name one REF, or write each as org/task@sha256:…")
    wanted = [AdapterRef.parse(ref) for ref in refs]
    progress = byte_progress(is_quiet=as_json)
    pulled = (
        api.pull_locked(wanted, lock=lockfile, registry=registry, offline=offline, progress=progress)
        if locked
        else (api.pull(ref, registry=registry, digest=digest, offline=offline, progress=progress) for ref in wanted)
    )
    documents = [_document(one) for one in pulled]  # one at a time: each holds its weights
    lines = [f"{d['reference']}  {d['digest']}  {d['path']}" for d in documents]
    print_data(documents, lambda: "\n".join(lines), as_json=as_json)


@click.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@registry_option
@lockfile_option
@json_option
def lock(refs: tuple[str, ...], registry: str | None, lockfile: str, as_json: bool) -> None:
    """Write into the lock file what each REF means now; without REF, what all in it mean now.

    No weights move. `lora-hub pull --locked` and, in Python, `lock=` then give everybody the same bytes.
    """
    import dataclasses

    from lora_hub import api

    locked = api.lock(refs, lock=lockfile, registry=registry)
    for choice in locked.choices:
        say_passed(choice)
    lines = [f"{entry.reference}  {entry.exact}  {entry.digest}" for entry in locked.file.entries]
    document = [dataclasses.asdict(entry) for entry in locked.file.entries]
    print_data(document, lambda: "\n".join(lines), as_json=as_json)


COMMANDS = (push, pull, lock)


def _codes(words: tuple[str, ...]) -> list[str]:
    """Return the codes that *words* spell, each one of them or several with commas."""
    return [code for word in words for code in word.split(",") if code]


def _document(pulled: Pulled) -> dict[str, Any]:
    say_passed(pulled)
    return {
        "reference": str(pulled.reference),
        "digest": pulled.digest,
        "commit": pulled.commit,
        "path": str(pulled.path),
        "trusted": pulled.reason,
        "signers": [str(signer) for signer in pulled.adapter.signers],
        "yanked": pulled.yanked,
    }


def say_passed(found: Pulled | Choice) -> None:
    """Say what was passed over for what was found, and whether that is yanked."""
    if found.skipped is not None:
        say(f"{found.skipped} is newer, but was passed over: {found.skipped_because}")
    if found.yanked is not None:
        reference = found.reference if hasattr(found, "reference") else found.published.reference
        say(f"{reference} was yanked by its publisher: {found.yanked}")
