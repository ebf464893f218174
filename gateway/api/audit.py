"""The ledger as JSON: records, proofs, checkpoints, the evidence folder."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["audit"])
