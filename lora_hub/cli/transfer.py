"""push, pull, lock: between directories, registries and the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import byte_progress, json_option, print_data, registry_option, say

if TYPE_CHECKING:
    from lora_hub.reference import AdapterRef
    from lora_hub.registry.pull import Pulled

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
@json_option
def push(directory: str, ref: str, registry: str | None, private: bool, as_json: bool) -> None:
    """Publish the adapter in DIRECTORY as the immutable version REF (org/task@1.0.0).

    The token is that of `hf auth login`, or HF_TOKEN. What was published is pinned in your trust policy.
    """
    from lora_hub import api

    done = api.push(directory, ref, registry=registry, private=private)
    for pin in done.replaced:
        say(f"your pin of {pin.reference} was {pin.digest}, and is this version now")
    document = {
        "reference": str(done.reference),
        "digest": done.digest,
        "registry": done.registry,
        "commit": done.commit,
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
    Hub or an object store must be pinned (`lora-hub trust pin`), named by its digest, or locked.
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
    for newer in locked.skipped:
        _say_skipped(newer)
    lines = [f"{entry.reference}  {entry.exact}  {entry.digest}" for entry in locked.file.entries]
    document = [dataclasses.asdict(entry) for entry in locked.file.entries]
    print_data(document, lambda: "\n".join(lines), as_json=as_json)


COMMANDS = (push, pull, lock)


def _document(pulled: Pulled) -> dict[str, Any]:
    if pulled.skipped is not None:
        _say_skipped(pulled.skipped)
    return {
        "reference": str(pulled.reference),
        "digest": pulled.digest,
        "commit": pulled.commit,
        "path": str(pulled.path),
    }


def _say_skipped(newer: AdapterRef) -> None:
    say(f"{newer} is newer, but not pinned: `lora-hub info {newer}`")
