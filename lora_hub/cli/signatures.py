"""sign, verify, yank: who vouches for an adapter, and who takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import ask_passphrase, json_option, key_option, print_data, registry_option, say, shown

if TYPE_CHECKING:
    from lora_hub.recompute import Recomputed


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--as", "ref", metavar="REF", help="org/task@1.0.0: a part of what is signed, written into the manifest.")
@click.option("--add", is_flag=True, help="Sign beside those who signed already.")
@key_option
@click.option("--sigstore", is_flag=True, help="Sign with your OpenID identity, which a public log then shows.")
@json_option
def sign(directory: str, ref: str | None, add: bool, key: str | None, sigstore: bool, as_json: bool) -> None:
    """Sign the adapter in DIRECTORY, so that `push` publishes it with your signature.

    `push` alone signs as well; sign first where several people sign one version, each adding a signature.
    """
    from lora_hub import vouch
    from lora_hub.errors import UsageError

    if sigstore and key:
        raise UsageError("--sigstore signs without a key", hint="leave out one of them")
    done = vouch.sign(directory, ref, key=key, keyless=sigstore, add=add, passphrase=ask_passphrase)
    document = {"reference": str(done.reference), "signer": done.signer, "path": str(done.path)}
    print_data(document, lambda: "  ".join(document.values()), as_json=as_json)


@click.command()
@click.argument("source", metavar="DIR|REF")
@registry_option
@click.option("--key", metavar="FILE", help="The public key that must have signed; by default your policy decides.")
@click.option("--recompute", is_flag=True, help="Also compose it anew from its inputs, and compare.")
@click.option("--input", "inputs", metavar="ID=DIR", multiple=True, help="Where an input lies, to recompute.")
@json_option
def verify(
    source: str, registry: str | None, key: str | None, recompute: bool, inputs: tuple[str, ...], as_json: bool
) -> None:
    """Verify signature, manifest and every byte of DIR or REF.

    A directory is verified as strictly as what comes from a stranger. Ends with 0 only if somebody whom your trust
    policy names for it has signed it, or its digest is pinned or named.

    With --recompute, what `compose` made is made anew by its recorded recipe, from inputs with the recorded digests. It
    is then bit-equal, rounded (no value is further off than the next number of its dtype) or the same within a
    tolerance; else the exit code is 6. A draft that nobody signed yet can be recomputed as well.
    """
    from lora_hub import vouch
    from lora_hub.errors import UsageError

    if inputs and not recompute:
        raise UsageError("--input says where an input lies, to compose anew", hint="add --recompute")
    if recompute:
        from lora_hub import recompute as recomputing

        again = recomputing.recompute(source, registry=registry, key=key, inputs=_directories(inputs))
        done, recomputed = again.verified, _recomputed(again)
        for name, why in again.yanked.items():
            say(f"the input `{name}` was yanked by its publisher: {why}")
    else:
        done, recomputed = vouch.verify(source, registry=registry, key=key), {}
    if done.yanked is not None:
        say(f"{done.adapter.manifest.reference} was yanked by its publisher: {done.yanked}")
    document = {
        "reference": str(done.adapter.manifest.reference) if done.adapter.manifest.reference else None,
        "digest": done.adapter.digest,
        "signers": [str(signer) for signer in done.adapter.signers],
        "trusted": done.reason,
        "yanked": done.yanked,
        **recomputed,
    }
    line = f"{document['reference'] or source}  {document['digest']}  {document['trusted']}"
    print_data(document, lambda: "\n".join([line, *map(_agreement, recomputed.values())]), as_json=as_json)


def _directories(inputs: tuple[str, ...]) -> dict[str, str]:
    from lora_hub.errors import UsageError

    pairs = [text.partition("=") for text in inputs]
    for name, _, directory in pairs:
        if not name or not directory:
            raise UsageError(f"`{name}` is not of the form ID=DIR", hint="as in `--input sql=./sql`")
    return {name: directory for name, _, directory in pairs}


def _recomputed(again: Recomputed) -> dict[str, Any]:
    comparison = again.comparison
    worst, difference = comparison.worst
    document = {
        "agreement": str(comparison.agreement),
        "worst_module": worst,
        "difference": difference.whole,
        "largest_of_a_row_or_column": difference.part,
        "limit": comparison.limit,
        "modules": {path: difference.whole for path, difference in comparison.differences.items()},
        "inputs": dict(again.reasons),
        "yanked_inputs": dict(again.yanked),
    }
    return {"recomputed": document}


def _agreement(document: dict[str, Any]) -> str:
    size = f"norm(D' - D) / norm(D) is at most {document['difference']:.2g} (in {document['worst_module']})"
    text = {
        "bit-equal": "bit-equal",
        "rounded": f"rounded: no value is further off than the next number of its dtype; {size}",
        "tolerance": f"the same within a tolerance: {size}; up to {document['limit']:.2g} can be rounding",
    }
    return shown(f"recomputed: {text[document['agreement']]}")


@click.command()
@click.argument("ref")
@click.option("--reason", metavar="TEXT", default="", help="Why, for those who use it.")
@registry_option
@key_option
@json_option
def yank(ref: str, reason: str, registry: str | None, key: str | None, as_json: bool) -> None:
    """Take back REF, an exact version, by a signed statement.

    Nobody starts to use it any more: org/task and ranges never mean it. Whoever pinned or locked it goes on, with a
    warning. A published version is never removed or changed.
    """
    from lora_hub import vouch

    done = vouch.yank(ref, reason=reason, registry=registry, key=key, passphrase=ask_passphrase)
    document = {"reference": str(done.reference), "digest": done.digest, "reason": done.reason}
    print_data(document, lambda: f"{done.reference}  {done.digest}  yanked", as_json=as_json)


COMMANDS = (sign, verify, yank)
