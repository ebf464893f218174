"""The sample bank behind the MCP server: accounts, contacts, and an append-only list of effects.

Plain state in memory. It knows nothing of MCP; amounts are in the account's currency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.demo.wire import JSON, compact
from gateway.telemetry import Clock, utc_now

Account = Annotated[str, Field(description="Account number", pattern=r"^\d{4}$")]


class BankRefused(Exception):
    """The bank does not do it; the message is for the caller."""


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GetBalance(_Arguments):
    """The current balance of one account."""

    account: Account


class ListTransfers(_Arguments):
    """The transfers from and to one account, newest first."""

    account: Account
    limit: int = Field(10, ge=1, le=100)


class FindContact(_Arguments):
    """Contact details of a customer by name."""

    name: str


class Transfer(_Arguments):
    """Move money between two accounts. Takes effect at once and cannot be undone."""

    to_account: Account
    amount: float = Field(gt=0, description="Amount in the currency given")
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$")
    from_account: Account = "4711"
    reference: str = ""


class UpdateContact(_Arguments):
    """Change the phone number or e-mail address of a customer."""

    name: str
    phone: str | None = None
    email: str | None = None


class FreezeAccount(_Arguments):
    """Block an account for all transfers."""

    account: Account
    frozen: bool = True


@dataclass
class Bank:
    """The state. Every change is appended to `effects`, and to `journal` (JSON lines) if given."""

    journal: Path | None = None
    clock: Clock = utc_now
    effects: list[JSON] = field(default_factory=list)
    balances: dict[str, float] = field(
        default_factory=lambda: {"4711": 12_500.0, "0815": 310.5, "2001": 98_000.0}
    )
    frozen: set[str] = field(default_factory=set)
    contacts: dict[str, JSON] = field(
        default_factory=lambda: {
            "Ada Lovelace": {"phone": "+44 20 7946 0001", "email": "ada@customer.example"},
            "Carl Gauss": {"phone": "+49 551 490 0002", "email": "carl@customer.example"},
        }
    )

    def get_balance(self, wanted: GetBalance) -> JSON:
        return {"account": wanted.account, "balance": self._balance(wanted.account)}

    def list_transfers(self, wanted: ListTransfers) -> JSON:
        involved = [
            effect["arguments"]
            for effect in reversed(self.effects)
            if effect["tool"] == "transfer"
            and wanted.account
            in (effect["arguments"]["from_account"], effect["arguments"]["to_account"])
        ]
        return {"account": wanted.account, "transfers": involved[: wanted.limit]}

    def find_contact(self, wanted: FindContact) -> JSON:
        return {"name": wanted.name, **self._contact(wanted.name)}

    def transfer(self, order: Transfer) -> JSON:
        source = self._balance(order.from_account)
        target = self._balance(order.to_account)
        if {order.from_account, order.to_account} & self.frozen:
            raise BankRefused("One of the accounts is frozen.")
        if source < order.amount:
            raise BankRefused(f"Insufficient funds: the balance is {source:.2f}.")
        self.balances[order.from_account] = source - order.amount
        self.balances[order.to_account] = target + order.amount
        return {
            "transferred": order.amount,
            "currency": order.currency,
            "to_account": order.to_account,
            "new_balance": self.balances[order.from_account],
        }

    def update_contact(self, change: UpdateContact) -> JSON:
        contact = self._contact(change.name)
        contact |= {k: v for k, v in (("phone", change.phone), ("email", change.email)) if v}
        return {"name": change.name, **contact}

    def freeze_account(self, order: FreezeAccount) -> JSON:
        self._balance(order.account)
        if order.frozen:
            self.frozen.add(order.account)
        else:
            self.frozen.discard(order.account)
        return {"account": order.account, "frozen": order.frozen}

    def _balance(self, account: str) -> float:
        if account not in self.balances:
            raise BankRefused(f"There is no account {account}.")
        return self.balances[account]

    def _contact(self, name: str) -> JSON:
        if name not in self.contacts:
            raise BankRefused(f"There is no customer named {name}.")
        return self.contacts[name]

    def record(self, tool: str, arguments: Mapping[str, object], result: JSON) -> None:
        """Append one effect. Called once for each change that was made, never for a refusal."""
        effect: JSON = {
            "number": len(self.effects) + 1,
            "at": self.clock().isoformat(),
            "tool": tool,
            "arguments": dict(arguments),
            "result": result,
        }
        self.effects.append(effect)
        if self.journal is not None:
            with self.journal.open("a", encoding="utf-8") as lines:
                lines.write(compact(effect) + "\n")


@dataclass(frozen=True)
class BankTool:
    """One tool: how its arguments look and whether it changes anything."""

    name: str
    arguments: type[_Arguments]
    writes: bool = False
    destructive: bool = False

    @property
    def description(self) -> str:
        return " ".join((self.arguments.__doc__ or "").split())


TOOLS = (
    BankTool("get_balance", GetBalance),
    BankTool("list_transfers", ListTransfers),
    BankTool("find_contact", FindContact),
    BankTool("transfer", Transfer, writes=True, destructive=True),
    BankTool("update_contact", UpdateContact, writes=True),
    BankTool("freeze_account", FreezeAccount, writes=True, destructive=True),
)


def perform(bank: Bank, tool: BankTool, arguments: Mapping[str, object]) -> JSON:
    """Validate, act, record. BankRefused or pydantic's ValidationError when it is not done."""
    wanted = tool.arguments.model_validate(arguments)
    result: JSON = getattr(bank, tool.name)(wanted)
    if tool.writes:
        bank.record(tool.name, wanted.model_dump(), result)
    return result
