"""key: the keys with which adapters are signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_hub.cli.output import is_at_terminal, json_option, print_data, say, table

if TYPE_CHECKING:
    from lora_hub.documents.signers import PublicKey


@click.group()
def key() -> None:
    """Make and show your signing keys: one for each organisation whose adapters you publish."""


@key.command()
@click.argument("org")
@click.option("--curve", type=click.Choice(["P-256", "P-384", "P-521"]), default="P-256", show_default=True)
@json_option
def generate(org: str, curve: str, as_json: bool) -> None:
    """Make the key that signs the adapters of ORG, and trust it for ORG/*.

    The private key is encrypted if you type a passphrase, or if LORA_HUB_KEY_PASSPHRASE has one. It is never replaced.
    """
    from lora_hub import vouch

    passphrase = _new_passphrase(org)
    public = vouch.generate_key(org, curve=curve, passphrase=passphrase)
    if not passphrase:
        say("the private key is not encrypted: who can read its file can sign as you")
    _print({org: public}, as_json=as_json)


@key.command()
@click.argument("org", required=False)
@json_option
def show(org: str | None, as_json: bool) -> None:
    """Show the fingerprint of your key for ORG, or of all your keys: what others compare before they trust it."""
    from lora_hub import vouch

    _print(vouch.keys() if org is None else {org: vouch.public_key(org)}, as_json=as_json)


@key.command()
@click.argument("org")
def export(org: str) -> None:
    """Print your public key for ORG as PEM: give it to those who are to trust you."""
    from lora_hub import vouch

    click.echo(vouch.public_key(org).pem, nl=False)


def _new_passphrase(org: str) -> str | None:
    from lora_hub.signing.keys import passphrase_from_environment

    known = passphrase_from_environment(org)
    if known is not None or not is_at_terminal():
        return known
    typed: str = click.prompt(
        "Passphrase (empty for none)",
        default="",
        hide_input=True,
        confirmation_prompt=True,
        show_default=False,
        err=True,
    )
    return typed or None


def _print(keys: dict[str, PublicKey], *, as_json: bool) -> None:
    document = {name: public.fingerprint for name, public in keys.items()}
    print_data(document, lambda: table(list(document.items()), ("KEY", "FINGERPRINT")), as_json=as_json)
