"""Decides what a command may fetch and load of all that an output names: servers, sources and a VAE.

An output of a stranger may name anything: ``/etc/passwd``, a server in this network, a bucket of the viewer's, a model.
Nothing of it is used by default. The user names again what to use:

* ``--sources PREFIX``: images and masks below it are read, with the user's credentials. All others are not.
* ``--endpoint-url URL``: requests to this server are signed. A recorded server that is not the environment's
  ``AWS_ENDPOINT_URL`` and is not named again gets anonymous requests, and none without ``--sources``.
* ``--vae MODEL``: this model is loaded; its weights must be those of the output.

For an output that this user has encoded on this machine, see `inpaint_encode.output.own_outputs`, the user has named
all of it before: nothing needs to be named again. Others must name it: on another machine, in another home folder, or
for a copy of the output. The notes of a command say which option to add.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from inpaint_encode.errors import UsageError
from inpaint_encode.output.own_outputs import is_own
from inpaint_encode.settings import SourceAccess, SourceReading
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access


def source_access(output: str, job: Mapping[str, Any], options: SourceReading) -> Access:
    """Return how to read the sources of an output's rows.

    Args:
        output: normalized URI.
        job: the contents of ``_job.json``; empty if there is none.
        options: what the user names.

    Raises:
        UsageError: a prefix of ``--sources`` is not valid.
    """
    try:
        prefixes = tuple(storage.normalize_uri(one, storage.READABLE) for one in options.sources)
    except ValueError as error:
        raise UsageError(f"--sources: {error}") from None
    recorded, own = _recorded_access(job), is_own(output, job)
    endpoint = options.endpoint_url or recorded.endpoint_url
    of_environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint == of_environment.rstrip("/"):
        endpoint = ""
    is_named = own or not endpoint or endpoint == options.endpoint_url
    return Access(
        anonymous=options.anonymous or recorded.anonymous or not is_named,
        requester_pays=options.requester_pays or (own and recorded.requester_pays),
        endpoint_url=endpoint,
        prefixes=prefixes if prefixes or not own else _prefixes_of_own(job),
    )


def _prefixes_of_own(job: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the prefixes in buckets that a job of this user had listed; None for a list, or for folders with links."""
    found = _recorded_sources(job)
    in_buckets = all("://" in one for one in found) and not job.get("source", {}).get("pairs")
    return tuple(found) if found and in_buckets else None


def _recorded_sources(job: Mapping[str, Any]) -> list[str]:
    source = job.get("source")
    values = [source.get(name) for name in ("images", "masks", "pairs")] if isinstance(source, Mapping) else []
    return [one for one in values if isinstance(one, str) and one]


def option(name: str, value: str) -> str:
    """Return an option for a shell; the value may be a stranger's, and is quoted."""
    return f"{name}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"


def vae_to_load(output: str, job: Mapping[str, Any], recorded: str, given: str) -> str:
    """Return the VAE to load: the given one, or that of a job of this user; empty if the user must name it.

    Args:
        output: normalized URI.
        job: the contents of ``_job.json``; empty if there is none.
        recorded: what the output names.
        given: ``--vae``.
    """
    return given or (recorded if is_own(output, job) else "")


def check_named(output: str, job: Mapping[str, Any], options: SourceReading, vae: str) -> None:
    """Check that the user has named what it takes to encode rows of an output again.

    Raises:
        UsageError: the VAE or the sources are missing; the message says which options to add.
    """
    recorded = str(job.get("vae_source"))
    missing = [] if vae_to_load(output, job, recorded, vae) else [option("--vae", recorded)]
    if source_access(output, job, options).prefixes == ():
        missing += dict.fromkeys(option("--sources", one) for one in _recorded_sources(job))
    if missing:
        raise UsageError(
            f"--sample loads a VAE and reads sources, and you did not encode {output} here; if you trust what it "
            f"names, add {' '.join(missing)}"
        )


def suggest_sources(uri: str, job: Mapping[str, Any]) -> str:
    """Return the ``--sources`` that covers a row's URI: a recorded prefix, or else the URI's own folder."""
    prefixes = [one for one in _recorded_sources(job) if storage.is_below(uri, one)]
    return option("--sources", max(prefixes, key=len, default="") or uri.partition("#")[0].rpartition("/")[0])


def _recorded_access(job: Mapping[str, Any]) -> SourceAccess:
    try:
        return SourceAccess.model_validate(job.get("access") or {})
    except ValidationError:
        return SourceAccess()
