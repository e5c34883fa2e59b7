"""What a plan is asked for: a model, a device, a backend, and the memory that each step may use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from edgekit.errors import InputError
from edgekit.footprint import (
    STEP_TOKENS,
    Footprint,
    engine_bytes,
    find_footprint,
    fitting_group,
    kv_cache_bytes,
    workspace_bytes,
)
from edgekit.model import ModelSpec
from edgekit.profile import KV_BITS, KvStorage, Profile, Storage
from edgekit.steps import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of `make_plan`, but for precision and context."""

    model: str
    spec: ModelSpec
    profile: Profile
    backend: str
    budget: Budget
    """Of the device, for the running engine."""
    host: Budget
    """Of the machine that builds, for the steps that run in its RAM."""
    kv_precision: str = "auto"
    batch: int = 1
    bandwidth_bytes_per_s: float | None = None
    """For profiles that do not know theirs."""
    targets: tuple[Profile, ...] = ()
    """Other devices that the same engine is for."""
    speculation: str = "none"
    """How the engine drafts by itself."""

    @property
    def footprint(self) -> Footprint:
        """The backend's row. Raises `InputError`."""
        return find_footprint(self.backend, self.profile)

    @property
    def capabilities(self) -> tuple[int, ...]:
        """Compute capabilities of all devices that the engine is for, in order."""
        found = {p.sm for p in (self.profile, *self.targets) if p.sm is not None}
        return tuple(sorted(found))

    def storage(self, precision: str) -> Storage:
        """How the engine holds its weights, with the group size that the model's widths allow."""
        row = self.profile.storage_for(precision, self.spec.size_params, batch=self.batch)
        if row.group_size is None:
            return row
        # where nothing fits, the quantize step says so
        group = fitting_group(self.spec, row.group_size, is_fixed=row.keeps_undivided)
        return replace(row, group_size=group or row.group_size)

    def cache_bytes(self, kv_precision: str, context_tokens: int) -> int:
        """The cache of all conversations in the profile's `kv_precision`, when it is full."""
        row = self.footprint
        return kv_cache_bytes(
            self.spec,
            context_tokens=context_tokens + row.spare_tokens,
            batch=self.batch,
            kv_bits=self.profile.kv[kv_precision].bits,
            page_tokens=row.page_tokens if row.is_paged else 1,
        )

    def work_bytes(self, precision: str, kv_precision: str, context_tokens: int) -> int:
        """What computing takes beside weights and cache."""
        return workspace_bytes(
            self.spec,
            self.footprint,
            context_tokens=context_tokens,
            batch=self.batch,
            precision=precision,
            kv_precision=kv_precision,
            step_tokens=STEP_TOKENS[self.speculation],
        )

    def require_drafts(self, precision: str, kv_precision: str) -> None:
        """Raises `InputError` where the engine is to draft, and drafts, which are checked as parts
        of a prompt are, cannot be."""
        if self.speculation != "none" and (precision, kv_precision) in self.footprint.whole_prompts:
            raise InputError(
                f"{self.backend} takes no drafts over an {kv_precision} cache: prompts in parts do "
                "not read it, as far as is known",
                hint="use `--kv fp16`, or leave `--speculation` out",
            )

    def engine_bytes(self, precision: str, context_tokens: int) -> int | None:
        """Size of the compiled engine; `None` where no measurement allows to say."""
        measured = self.footprint.compilations.get(precision)
        if measured is None:
            return None
        storage = self.storage(precision)
        return engine_bytes(
            self.spec, storage, measured, context_tokens=context_tokens, batch=self.batch
        )

    def narrowed(self) -> Question:
        """The same, asked of what device and backend both have: precisions and KV caches.

        Raises `InputError` when they have nothing in common.
        """
        able = self.footprint.kv_precisions
        own = self.profile.kv or {name: KvStorage(bits=KV_BITS[name]) for name in able}
        rows = {name: row for name, row in own.items() if name in able}
        names = [
            name
            for name in self.profile.precisions
            if name in self.footprint.precisions
            and any(name not in row.not_with for row in rows.values())
        ]
        if not names:
            others = [name for name in self.profile.backends if name != self.backend]
            raise InputError(
                f"the backend {self.backend} has nothing that `{self.profile.name}` can use: it "
                f"runs {', '.join(self.footprint.precisions)} with a KV cache in {', '.join(able)}",
                hint=f"use `--backend {others[0]}`"
                if others
                else "change `precisions` or `kv` of the profile",
            )
        lacking = {f"kv.{name}": "cache" for name in own if name not in rows}
        lacking |= {name: "engines" for name in self.profile.precisions if name not in names}
        refused = {name: f"{self.backend} has no such {what}" for name, what in lacking.items()}
        profile = replace(
            self.profile,
            precisions=tuple(names),
            kv=MappingProxyType(rows),
            refused=MappingProxyType({**self.profile.refused, **refused}),
        )
        return replace(self, profile=profile)
