"""The tables of a trust policy: each is read as it was written, and what is not understood is refused."""

import base64
import datetime as dt
import hashlib
import textwrap

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.signers import MAX_PEM, Identity, PublicKey, Signer
from lora_hub.documents.trust_entries import MAX_THRESHOLD, Key, Pin, Revocation, Rule, is_key_name, is_scope
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import DocumentError, MalformedError
from lora_hub.version import Version

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
PRIVATE = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}
DIGEST = f"sha256:{'3c' * 32}"
FINGERPRINT = "7e" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pem(key) -> str:
    """The public key as everybody's tools write it."""
    public = key if hasattr(key, "public_bytes") else key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def der(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def as_pem(content: bytes, label: str = "PUBLIC KEY") -> str:
    """Any bytes as PEM."""
    body = "\n".join(textwrap.wrap(base64.b64encode(content).decode(), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


PUBLIC = {name: PublicKey(pem(key)) for name, key in PRIVATE.items()}
P256 = PUBLIC["P-256"]

# Keys


@pytest.mark.parametrize("curve", CURVES)
def test_a_public_key_is_kept_as_everybody_writes_it(curve):
    """A key of each curve is read, and spelt as OpenSSL spells it."""
    assert PublicKey.parse(PUBLIC[curve].pem) == PUBLIC[curve]


@pytest.mark.parametrize("curve", CURVES)
def test_a_fingerprint_is_that_of_the_text(curve):
    """It is the SHA-256 of the PEM, as bundles of Model Signing name a key."""
    assert PUBLIC[curve].fingerprint == hashlib.sha256(pem(PRIVATE[curve]).encode()).hexdigest()


SPELLINGS = {
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "old Mac": lambda text: text.replace("\n", "\r"),
    "no final newline": str.strip,
    "blank lines around": lambda text: f"\n\n{text}\n\n",
    "blank lines within": lambda text: text.replace("\n", "\n\n"),
    "indented": lambda text: textwrap.indent(text, "    "),
    "spaces at the ends": lambda text: text.replace("\n", "  \n"),
    "one long line": lambda text: rewrapped(text, 1000),
    "short lines": lambda text: rewrapped(text, 10),
}


def rewrapped(text: str, width: int) -> str:
    first, *body, last = text.split()[0:3], *text.splitlines()[1:-1], text.splitlines()[-1]
    lines = textwrap.wrap("".join(body), width)
    return "\n".join([" ".join(first), *lines, last])


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("curve", CURVES)
def test_a_key_has_one_fingerprint_however_it_is_spelt(curve, spelling):
    """Line ends, blanks and the length of lines are no part of a key."""
    spelt = SPELLINGS[spelling](PUBLIC[curve].pem)

    assert spelt != PUBLIC[curve].pem
    assert PublicKey.parse(spelt) == PUBLIC[curve]


NO_KEYS = {
    "nothing": "",
    "a word": "org",
    "a fingerprint": P256.fingerprint,
    "a private key": PRIVATE["P-256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    "an OpenSSH key": PRIVATE["P-256"].public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    "RSA": pem(rsa.generate_private_key(65537, 2048)),
    "Ed25519": pem(ed25519.Ed25519PrivateKey.generate()),
    "another curve": pem(ec.generate_private_key(ec.SECP256K1())),
    "a compressed point": as_pem(
        bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
        + PRIVATE["P-256"].public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    ),
    "a byte too many": as_pem(der(PRIVATE["P-256"]) + b"\0"),
    "a byte too few": as_pem(der(PRIVATE["P-256"])[:-1]),
    "a certificate's label": as_pem(der(PRIVATE["P-256"]), "CERTIFICATE"),
    "no key at all": as_pem(b""),
    "no end": P256.pem.rpartition("-----END")[0],
    "no beginning": P256.pem.partition("\n")[2],
    "two keys": P256.pem * 2,
    "remarks before it": f"key of org\n{P256.pem}",
    "a character that is none": P256.pem.replace("MFkw", "MFéw"),
    "a space within": P256.pem.replace("MFkw", "MF kw"),
    "URL-safe base64": P256.pem.replace("MFkw", "MF-_"),
    "too long": P256.pem.replace("\n", "\n" * MAX_PEM, 1),
}


@pytest.mark.parametrize("text", NO_KEYS.values(), ids=NO_KEYS)
def test_what_is_no_public_key_is_refused(text):
    """Other kinds of keys, half ones and two at once are refused (8) in one printable line."""
    with pytest.raises(MalformedError, match="expected a public key") as caught:
        PublicKey.parse(text)

    assert caught.value.message.isprintable()
    assert "key export" in caught.value.hint


def test_a_private_key_is_not_repeated():
    """Whoever mistakes the private key for the public one does not find it in the error."""
    secret = NO_KEYS["a private key"]
    with pytest.raises(MalformedError) as caught:
        PublicKey.parse(secret)

    assert not any(line in str(caught.value) for line in secret.splitlines()[1:-1])


def test_signers_are_shown_by_fingerprint_or_identity():
    """A key is shown by its whole fingerprint, an identity with its issuer, and neither moves a cursor."""
    keyless = Signer(Identity(identity="ci@org.example\x1b[2J", issuer="https://accounts.example"))

    assert str(Signer(FINGERPRINT)) == f"key {FINGERPRINT}"
    assert str(keyless) == r"ci@org.example\u001b[2J (https://accounts.example)"


# Names and scopes


@pytest.mark.parametrize("name", ["a", "0", "org", "Org_1.x-y", "a" * 64])
def test_these_are_names_of_keys(name):
    """A word of letters, digits, dots, underscores and hyphens."""
    assert is_key_name(name)


@pytest.mark.parametrize("name", ["", ".", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "a" * 65, "../a", "a\0"])
def test_these_are_no_names_of_keys(name):
    """Nothing that could be a path, an option or an empty text names a key."""
    assert not is_key_name(name)


@pytest.mark.parametrize("scope", ["org/task", "org/*", "*", "Org-1/Task_2.x", "a/b"])
def test_these_are_scopes(scope):
    """One adapter, all of one organisation, or all."""
    assert is_scope(scope)


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "org",
        "org/",
        "/task",
        "*/task",
        "*/*",
        "org/t*",
        "or*/task",
        "org/**",
        "org/task@1.0.0",
        "../*",
        "org/a/b",
        "**",
        "org/*\n",
    ],
)
def test_these_are_no_scopes(scope):
    """No other pattern is understood, so none is accepted."""
    assert not is_scope(scope)


@pytest.mark.parametrize(
    ("scope", "name", "covers"),
    [
        ("org/task", "org/task", True),
        ("org/task", "org/task2", False),
        ("org/task", "org/Task", False),
        ("org/task", "my-org/task", False),
        ("org/*", "org/task", True),
        ("org/*", "org2/task", False),
        ("org/*", "my-org/task", False),
        ("*", "org/task", True),
    ],
)
def test_a_scope_covers_what_it_names(scope, name, covers):
    """A scope is compared letter for letter: no adapter slips in that is only called alike."""
    assert Rule(scope=scope).covers(name) == covers


# Round trips

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
VERSIONS = st.builds(
    Version, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.sampled_from([(), ("rc", "1"), ("x",)])
)
MOMENTS = st.integers(0, 32 * 10**9).map(lambda second: dt.datetime.fromtimestamp(second, dt.UTC))
KEYS = st.builds(
    Key,
    name=NAMES,
    public=st.sampled_from(list(PUBLIC.values())),
    not_before=st.none() | MOMENTS,
    not_after=st.none() | MOMENTS,
)
IDENTITIES = st.builds(Identity, identity=TEXTS, issuer=TEXTS)
SCOPES = st.sampled_from(["org/task", "org/*", "*", "Some-Org/x.y_z"])
PINS = st.builds(
    Pin,
    registry=TEXTS,
    name=st.sampled_from(["org/task", "Some-Org/x.y_z"]),
    digest=st.binary(min_size=32, max_size=32).map(lambda content: f"sha256:{content.hex()}"),
    version=VERSIONS.map(str),
    commit=st.none() | st.just(COMMIT),
)
REVOCATIONS = st.builds(Revocation, key=st.just(FINGERPRINT), digest=st.none(), reason=st.none() | TEXTS) | st.builds(
    Revocation, key=st.none(), digest=st.just(DIGEST), reason=st.none() | TEXTS
)


@st.composite
def rules(draw) -> Rule:
    """A rule with at least one signer; its keys are called `a`, `b` and `c`."""
    keys = draw(st.lists(st.sampled_from("abc"), unique=True))
    identities = draw(st.lists(IDENTITIES, unique=True, max_size=3, min_size=0 if keys else 1))
    limits = st.none() | st.integers(1, 2**31)
    return Rule(
        scope=draw(SCOPES),
        keys=tuple(keys),
        identities=tuple(identities),
        threshold=draw(st.integers(1, len(keys) + len(identities))),
        min_version=draw(st.none() | VERSIONS),
        max_r=draw(limits),
        max_size=draw(limits),
    )


THREE_KEYS = "".join(
    Key(name=name, public=public).to_toml() for name, public in zip("abc", PUBLIC.values(), strict=True)
)


def parsed(text: str) -> TrustPolicy:
    return TrustPolicy.parse(f"version = 1\n\n{text}".encode())


@given(key=KEYS)
def test_a_key_comes_back_as_it_was_written(key):
    """A key is read from its own table, with its window."""
    assert parsed(key.to_toml()).keys == (key,)


@given(rule=rules())
def test_a_rule_comes_back_as_it_was_written(rule):
    """A rule is read from its own table, with its signers and limits."""
    assert parsed(THREE_KEYS + rule.to_toml()).rules == (rule,)


@given(revocation=REVOCATIONS)
def test_a_revocation_comes_back_as_it_was_written(revocation):
    """A revocation is read from its own table, whatever its reason says."""
    assert parsed(revocation.to_toml()).revoked == (revocation,)


@given(pin=PINS)
def test_a_pin_comes_back_as_it_was_written(pin):
    """A pin is read from its own table, whatever the URL of its registry is."""
    assert parsed(pin.to_toml()).pins == (pin,)


@given(entries=st.lists(REVOCATIONS | PINS, max_size=5, unique_by=lambda entry: getattr(entry, "version", None)))
def test_tables_do_not_run_into_each_other(entries):
    """Several tables one after the other are read as those several entries."""
    policy = parsed("\n".join(entry.to_toml() for entry in entries))

    assert set(policy.entries) == set(entries)


def test_a_window_may_be_written_in_any_zone():
    """A time counts as the moment that it is, wherever its clock hangs."""
    (key,) = parsed(Key(name="a", public=P256).to_toml() + "not_after = 2027-01-31T01:00:00+02:00\n").keys

    assert key.not_after == dt.datetime(2027, 1, 30, 23, tzinfo=dt.UTC)


def test_the_end_of_the_calendar_can_be_written():
    """Who means "for ever" by the last second of their own calendar is understood; the key can be written again."""
    (key,) = parsed(Key(name="a", public=P256).to_toml() + "not_after = 9999-12-31T23:59:59-01:00\n").keys

    assert parsed(key.to_toml()).keys == (key,)


# Defects

RULE = '[[rule]]\nscope = "org/*"\nkeys = ["a", "b"]\n'
KEY = Key(name="d", public=PublicKey(pem(ec.generate_private_key(ec.SECP256R1())))).to_toml()
REVOKED = f'[[revoked]]\nkey = "{FINGERPRINT}"\n'

DEFECTS = {
    "a key has no name": (KEY.replace('name = "d"\n', ""), "key[3].name"),
    "a key's name is a path": (KEY.replace('"d"', '"../d"'), "key[3].name"),
    "a key's name is empty": (KEY.replace('"d"', '""'), "key[3].name"),
    "a key has no PEM": ('[[key]]\nname = "d"\n', "key[3].pem"),
    "a PEM is none": ('[[key]]\nname = "d"\npem = "MFkw"\n', "key[3].pem"),
    "a PEM is a private key": (
        f'[[key]]\nname = "d"\npem = """\n{NO_KEYS["a private key"]}"""\n',
        "key[3].pem",
    ),
    "a time without its offset": (KEY + "not_before = 2027-01-31T00:00:00\n", "key[3].not_before"),
    "a date": (KEY + "not_after = 2027-01-31\n", "key[3].not_after"),
    "a time that is a text": (KEY + 'not_after = "2027-01-31T00:00:00Z"\n', "key[3].not_after"),
    "a misspelt window": (KEY + "not_aftr = 2027-01-31T00:00:00Z\n", "key[3].not_aftr"),
    "a key says that it is revoked": (KEY + "revoked = true\n", "key[3].revoked"),
    "two keys of one name": (KEY.replace('"d"', '"a"'), "key"),
    "one key under two names": (
        KEY
        + THREE_KEYS.partition("[[key]]\n")[2].partition("[[key]]")[0].join(["[[key]]\n", ""]).replace('"a"', '"e"'),
        "key",
    ),
    "no scope": (RULE.replace('scope = "org/*"\n', ""), "rule[0].scope"),
    "a scope that is none": (RULE.replace("org/*", "org/t*"), "rule[0].scope"),
    "two rules of one scope": (RULE * 2, "rule"),
    "nobody may sign": ('[[rule]]\nscope = "org/*"\n', "rule[0].keys"),
    "the keys are empty": ('[[rule]]\nscope = "org/*"\nkeys = []\n', "rule[0].keys"),
    "a key twice in one rule": (RULE.replace('"b"', '"a"'), "rule[0].keys"),
    "an identity twice in one rule": (
        RULE + 'identities = [{identity = "x", issuer = "y"}, {identity = "x", issuer = "y"}]\n',
        "rule[0].keys",
    ),
    "a key that is not there": (RULE.replace('"b"', '"nobody"'), "rule"),
    "keys are a text": (RULE.replace('["a", "b"]', '"a"'), "rule[0].keys"),
    "an identity without its issuer": (RULE + 'identities = [{identity = "x"}]\n', "rule[0].identities[0].issuer"),
    "an empty identity": (
        RULE + 'identities = [{identity = "", issuer = "y"}]\n',
        "rule[0].identities[0].identity",
    ),
    "an identity that is a pattern": (
        RULE + 'identities = [{identity_regexp = ".*", issuer = "y"}]\n',
        "rule[0].identities[0].identity_regexp",
    ),
    "a threshold of zero": (RULE + "threshold = 0\n", "rule[0].threshold"),
    "a threshold that is negative": (RULE + "threshold = -1\n", "rule[0].threshold"),
    "a threshold that is true": (RULE + "threshold = true\n", "rule[0].threshold"),
    "a threshold that nobody can reach": (RULE + "threshold = 3\n", "rule[0].threshold"),
    "a version that is a range": (RULE + 'min_version = "^1.2"\n', "rule[0].min_version"),
    "a version that is a number": (RULE + "min_version = 1.2\n", "rule[0].min_version"),
    "a rank of zero": (RULE + "max_r = 0\n", "rule[0].max_r"),
    "a size that is a text": (RULE + 'max_size = "1 GB"\n', "rule[0].max_size"),
    "a rule with an unknown limit": (RULE + "max_age = 3\n", "rule[0].max_age"),
    "a key and a digest are revoked at once": (REVOKED + f'digest = "{DIGEST}"\n', "revoked[0].key"),
    "nothing is revoked": ('[[revoked]]\nreason = "why not"\n', "revoked[0].key"),
    "a name is revoked": ('[[revoked]]\nkey = "a"\n', "revoked[0].key"),
    "a short digest is revoked": ('[[revoked]]\ndigest = "sha256:3c"\n', "revoked[0].digest"),
    "a reason that is a number": (REVOKED + "reason = 3\n", "revoked[0].reason"),
    "a revocation with an end": (REVOKED + "until = 2027-01-31T00:00:00Z\n", "revoked[0].until"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_refused_where_it_is(defect):
    """What is not understood cannot be enforced: it is refused (8), and the error points at the offending key."""
    text, context = DEFECTS[defect]
    with pytest.raises(DocumentError) as caught:
        parsed(f"{THREE_KEYS}\n{text}")

    assert caught.value.context == context
    assert caught.value.exit_code == 8
    assert caught.value.message.isprintable()


def test_a_threshold_is_at_most_as_many_as_may_sign():
    """A version has at most nine signatures, so no rule can ask for ten."""
    identities = ", ".join(f'{{identity = "{number}", issuer = "y"}}' for number in range(10))
    text = f'[[rule]]\nscope = "*"\nidentities = [{identities}]\nthreshold = '

    assert parsed(f"{text}{MAX_THRESHOLD}").rules[0].threshold == MAX_THRESHOLD
    with pytest.raises(DocumentError, match="threshold"):
        parsed(f"{text}{MAX_THRESHOLD + 1}")
