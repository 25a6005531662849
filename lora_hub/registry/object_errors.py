"""What fsspec and the libraries below it raise, in errors of ours: every store words a refusal in its own way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lora_hub.documents.fields import printable
from lora_hub.errors import MissingExtraError, NotFoundError, RegistryError, UsageError

CHECK = "check the URL and the network, and AWS_ENDPOINT_URL if you set it; then try again"
LOG_IN = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a public bucket needs FSSPEC_S3_ANON=true",
    "gs": "run `gcloud auth application-default login`; to push takes the right to list, read and write",
}


@contextmanager
def store_errors(url: str, protocol: str, missing: str = "") -> Iterator[None]:
    """Turn what is raised into an error of ours; *missing* is what to say if there is no such object."""
    try:
        yield
    except FileNotFoundError as error:
        message = missing or f"there is no registry `{url}`"
        raise NotFoundError(message, hint="check the URL; a push makes no bucket") from error
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or "fsspec[full]"
        needed = f"lora-hub[{protocol}]" if protocol in LOG_IN else package
        message = f"a registry of the kind `{protocol}:` needs the package `{package}`"
        raise MissingExtraError(message, hint=f"pip install '{needed}'") from error
    except ValueError as error:  # fsspec's word for a protocol that it does not know
        raise UsageError(f"`{url}` names no registry: {error}", hint=CHECK) from error
    except Exception as error:
        if not isinstance(error, OSError) and package_of(error) in {"builtins", "lora_hub"}:
            raise
        said = printable(f"{type(error).__name__}: {error}", limit=300)
        hint = LOG_IN.get(protocol, "check the login that it needs") if _is_login(error) else CHECK
        raise RegistryError(f"`{url}` cannot be used: {said}", hint=hint) from error


def package_of(error: BaseException) -> str:
    """Return the package that defines the class of *error*."""
    return type(error).__module__.partition(".")[0]


def _is_login(error: Exception) -> bool:
    is_refusal = isinstance(error, PermissionError) or getattr(error, "status", None) in {401, 403}
    return is_refusal or "Credential" in type(error).__name__
