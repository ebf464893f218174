"""The guards of "at most once" and "record before act", and the tests that notice their absence.

Where two guards stand behind each other so that either is enough, both are taken away. A guard
that is added belongs here, with the test that is red without it: `make guards`.
"""

from __future__ import annotations

from tests.guards.guard import Guard, guard

RELEASE, STANDING = "approvals/release", "approvals/standing"
EXCHANGES, REPLICAS = "approvals/exchanges", "approvals/replicas"
REVIEW, CASE = "approvals/review", "approvals/case"
LIFECYCLE, DECISIONS = "approvals/lifecycle", "approvals/decisions"
MACHINE, AZURE, DRIVER = "exchange/machine", "proxy/azure", "proxy/driver"
RETRYING, CLAIMING = "proxy/retrying", "proxy/claiming"
LEDGER, SEQUENCER = "audit/ledger", "audit/sequencer"

RELEASING = "integration/test_release.py::test_"
REPLICATED = "integration/test_replicas.py::test_"
LOST = f"{REPLICATED}C_15_who_lost_the_exchange_writes_nothing_about_it"
REVIEWING = "integration/test_reviewing.py::test_"
SIGNED = "integration/test_waits_for_the_head.py::test_"
PAUSED = "integration/test_pauses.py::test_"
GRANTED = "integration/test_grants.py::test_"
RECORDED = "integration/test_ledger.py::test_"
PURE = "unit/test_exchange_"
RESET = (
    "e2e/test_stale_connection.py::test_E_11_a_resume_whose_connection_is_reset_is_not_sent_again"
)
FELL = f"{RELEASING}E_14_what_has_changed_since_is_noticed"

CLAIMS = (
    guard(
        "a claim looks at the fence",
        f"{LOST}[sqlite-act_send]",
        (f"{RELEASE}:_claim", "col(Exchange.fence) == kept.fence,", ""),
    ),
    guard(
        "a claim looks at the state",
        f"{RELEASING}a_round_that_was_claimed_is_not_claimed_again[sqlite]",
        (f"{RELEASE}:_claim", 'col(Exchange.state) == "holding",', ""),
    ),
    guard(
        "a claim raises the fence",
        f"{RELEASING}an_outcome_is_recorded_once[sqlite]",
        (f"{RELEASE}:_claim", ', fence=kept.fence + 1', ""),
    ),
    guard(
        "an approval is marked only while it is not sent",
        f"{RELEASING}of_two_exchanges_that_send_one_approval_one_does[postgresql]",
        (f"{RELEASE}:_mark", 'col(ApprovalRequest.execution) == "not_sent",', ""),
    ),
    guard(
        "an approval that was sent is not sent by another exchange",
        f"{RELEASING}of_two_exchanges_that_send_one_approval_one_does[sqlite]",
        (f"{RELEASE}:_mark", 'col(ApprovalRequest.execution) == "not_sent",', ""),
        (f"{STANDING}:approved", 'ApprovalRequest.execution == "not_sent",', ""),
    ),
    guard(
        "only what is approved is sent",
        f"{RELEASING}what_nobody_approved_is_not_sent[sqlite]",
        (f"{RELEASE}:_mark", 'col(ApprovalRequest.state) == "approved",', ""),
        (f"{STANDING}:approved", "ApprovalRequest.state == lifecycle.APPROVED,", ""),
    ),
    guard(
        "what is superseded is not sent",
        f"{RELEASING}what_is_superseded_is_never_sent[sqlite]",
        (f"{RELEASE}:_mark", "col(ApprovalRequest.superseded_by).is_(None),", ""),
        (f"{STANDING}:approved", "col(ApprovalRequest.superseded_by).is_(None),", ""),
    ),
    guard(
        "what was sent is not superseded",
        f"{RELEASING}what_was_sent_cannot_be_superseded[sqlite]",
        (f"{STANDING}:supersede", 'col(ApprovalRequest.execution) == "not_sent",', ""),
    ),
    guard(
        "an approval is superseded once",
        f"{RELEASING}what_is_superseded_is_superseded_once[sqlite]",
        (f"{STANDING}:supersede", "col(ApprovalRequest.superseded_by).is_(None),", ""),
    ),
    guard(
        "a release has a record",
        f"{RELEASING}one_approval_is_claimed_once_however_many_try[sqlite]",
        (f"{RELEASE}:_mark", "_record(tx, kept, row, fields, now)", "pass"),
    ),
    guard(
        "a round with answers is claimed before it is sent",
        "e2e/test_path.py::test_an_approved_call_runs_once_and_the_app_sees_one_response[plain]",
        (f"{CLAIMING}:Claiming.attempt", "if not turn.releases and not turn.denials:", "if True:"),
    ),
    guard(
        "an outcome is written by the last claim",
        f"{RELEASING}C_15_a_stale_claim_records_no_outcome[sqlite]",
        (f"{RELEASE}:observe", "fence == kept.fence,", ""),
    ),
    guard(
        "an outcome is written once",
        f"{RELEASING}an_outcome_is_recorded_once[sqlite]",
        (f"{RELEASE}:observe", 'col(ApprovalRequest.execution) == "sending",', ""),
    ),
    guard(
        "an unknown outcome is settled once",
        f"{RELEASING}an_outcome_is_settled_once[sqlite-executed]",
        ("approvals/settlement:settle", 'col(ApprovalRequest.execution) == "unknown",', ""),
        ("approvals/settlement:settle", "col(ApprovalRequest.settlement).is_(None),", ""),
        ("approvals/settlement:_refuse", 'if row.execution != "unknown":', "if False:"),
    ),
    guard(
        "what Azure shows is not settled otherwise",
        f"{RELEASING}what_azure_shows_is_not_settled_otherwise[sqlite]",
        ("approvals/settlement:_refuse", 'settling.outcome == "not_executed" and', "False and"),
    ),
)  # fmt: skip

FENCES = (
    guard(
        "whoever takes an exchange names its fence",
        f"{REPLICATED}of_two_claims_one_wins_and_the_fence_grows[sqlite]",
        (f"{REPLICAS}:take", "col(Exchange.fence) == fence,", ""),
    ),
    guard(
        "a take-over raises the fence",
        f"{REPLICATED}of_two_claims_one_wins_and_the_fence_grows[sqlite]",
        (f"{REPLICAS}:take", "fence=fence + 1,", "fence=fence,"),
    ),
    guard(
        "what is over is taken by nobody",
        f"{REPLICATED}what_is_over_is_claimed_by_nobody[sqlite]",
        (f"{REPLICAS}:take", "col(Exchange.state).in_(OPEN),", ""),
    ),
    guard(
        "only the owner lets go",
        f"{REPLICATED}letting_go_is_for_the_owner_only[sqlite]",
        (f"{REPLICAS}:let_go", ", col(Exchange.fence) == kept.fence", ""),
    ),
    guard(
        "saving names state and fence",
        f"{LOST}[sqlite-act_save]",
        (f"{EXCHANGES}:save", "col(Exchange.state) == kept.state,", ""),
        (f"{EXCHANGES}:save", "col(Exchange.fence) == kept.fence,", ""),
    ),
    guard(
        "finishing names state and fence",
        f"{LOST}[sqlite-act_finish]",
        (f"{EXCHANGES}:finish", "col(Exchange.state) == kept.state,", ""),
        (f"{EXCHANGES}:finish", "col(Exchange.fence) == kept.fence,", ""),
        (f"{EXCHANGES}:_missed", ", col(Exchange.fence) == kept.fence", ""),
    ),
    guard(
        "naming a response names the fence",
        f"{LOST}[sqlite-act_name]",
        (f"{EXCHANGES}:name_response", ", col(Exchange.fence) == kept.fence", ""),
    ),
    guard(
        "what is written about an exchange holds on to its fence",
        f"{LOST}[sqlite-act_cancel] {LOST}[sqlite-act_leave_open]",
        ("approvals/kept:hold_on", ", col(Exchange.fence) == kept.fence", ""),
    ),
    guard(
        "no byte leaves once the lease has lapsed",
        f"{REPLICATED}C_15_no_byte_leaves_for_azure_once_the_lease_has_lapsed[False]",
        (f"{AZURE}:Azure._attempt", "if not watch.may():", "if False:"),
    ),
    guard(
        "a lease that lapsed is another one afterwards",
        f"{REPLICATED}C_15_a_lease_that_lapsed_is_another_one_afterwards",
        ("approvals/lease:Lease.beat", "self._term += 1", "pass"),
    ),
    guard(
        "what was being sent is unknown to who takes it up",
        "e2e/test_crash.py::test_a_death_while_a_call_is_being_sent_leaves_its_outcome_unknown[sqlite]",
        ("proxy/recovery:Recovery._take_up", "await self._unknown(saved)", "pass"),
    ),
)  # fmt: skip

SENDING = (
    guard(
        "a resume takes a connection of its own",
        f"{RESET}[after-1-False]",
        (f"{AZURE}:Azure.round", "once=answers", "once=False"),
    ),
    guard(
        "a connection that broke may have carried everything",
        f"{RESET}[after-1-False]",
        (f"{AZURE}:Azure._attempt", "sent=True,", "sent=False,"),
    ),
    guard(
        "what may have been sent is not sent again",
        f"{RESET}[after-1-False]",
        (f"{RETRYING}:pause", "case Broken(sent=False):", "case Broken():"),
    ),
    guard(
        "an error that may come after the call is not tried again",
        "e2e/test_retries.py::test_P_13_a_failed_resume_is_told_once_and_never_sent_again"
        "[server-error-424-server_error-unknown-0]",
        (f"{RETRYING}:pause", "status=429 | 503", "status=429 | 500 | 503"),
        (f"{RETRYING}:pause", "return _retry_after(headers)", "return 0.0"),
    ),
    guard(
        "nothing is tried again while it is paused",
        "e2e/test_release.py::test_E_17_what_azure_did_not_begin_is_not_sent_again_while_paused",
        (f"{AZURE}:Azure.round", "if first is not None and watch.stopped():", "if False:"),
    ),
    guard(
        "a round that broke once sent leaves its calls unknown",
        f"{PURE}failures.py::test_E_11_a_resume_that_breaks_is_unknown_once_sent",
        (f"{MACHINE}:Exchange._broken", '"unknown" if event.sent else "not_sent"', '"not_sent"'),
    ),
    guard(
        "the first decision stands",
        f"{PURE}examples.py::test_E_05_parallel_requests_are_answered_together_in_output_order",
        (f"{MACHINE}:Exchange._decided",
         "if self.answers.get(event.request_id, event.answer) is not None:", "if False:"),
    ),
    guard(
        "only what was not sent is taken back",
        f"{PURE}examples.py::test_only_what_was_not_sent_can_be_taken_back",
        (f"{MACHINE}:Exchange._reopened", "if begun or not self.told", "if not self.told"),
    ),
    guard(
        "a second execution is a mismatch",
        f"{PURE}examples.py::test_E_19_a_second_execution_is_a_mismatch",
        (f"{MACHINE}:Exchange._executed", "self.released.pop(", "self.released.get("),
    ),
    guard(
        "executed arguments are compared with the approved ones",
        f"{PURE}examples.py::test_an_execution_that_differs_from_the_approved_call_is_a_mismatch",
        (f"{MACHINE}:Exchange._executed", "if not matches:", "if False:"),
    ),
    guard(
        "Azure is told to ask always",
        f"{PURE}enforcement.py::test_B_11_approval_is_always_required",
        ("exchange/enforcement:_entry", '"require_approval": "always"',
         '"require_approval": tool.entry.get("require_approval", "always")'),
    ),
    guard(
        "answers of the app never reach Azure",
        f"{PURE}enforcement.py::test_B_09_approvals_of_the_app_never_reach_azure",
        ("exchange/enforcement:_without_approvals", "if index not in dropped", ""),
    ),
)  # fmt: skip

STILL_STANDING = (
    guard(
        "rules that became stricter are noticed",
        "e2e/test_release.py::test_E_13_a_stricter_rule_asks_again",
        (f"{STANDING}:harder", "found[row.id] = stricter(assessment.ruling, then)",
         "found[row.id] = None"),
    ),
    guard(
        "a server that moved is noticed",
        f"{FELL}[sqlite-change0-server_changed-True]",
        (f"{STANDING}:_shut_out", "if server.url != row.server_url:", "if False:"),
    ),
    guard(
        "a server that the app may not use any more is noticed",
        f"{FELL}[sqlite-change3-server_not_allowed-True]",
        (f"{STANDING}:_shut_out", "if app.may_use(server.label)", "if True"),
    ),
    guard(
        "another definition is noticed",
        f"{FELL}[sqlite-change4-definition_changed-False]",
        (f"{STANDING}:_changed", "if digest != row.definition_digest:", "if False:"),
    ),
    guard(
        "time that is over is noticed",
        f"{RELEASING}a_pause_that_outlasts_the_time_of_a_call_ends_in_a_refusal[sqlite]",
        (f"{STANDING}:_outlived", "if now < _end(row):", "if True:"),
    ),
    guard(
        "a pause is waited for",
        f"{PAUSED}whom_a_pause_covers[sqlite-wanted0-True]",
        (f"{STANDING}:examine", "if pause is None else Waits", "if True else Waits"),
    ),
    guard(
        "a claim is made under the configuration in force",
        f"{PAUSED}E_17_a_release_sees_the_pause_that_was_first[sqlite]",
        (f"{RELEASE}:_begin", "!= view.version:", "is None:"),
    ),
    guard(
        "nobody changes the configuration during a claim",
        f"{PAUSED}E_17_a_pause_waits_for_the_release_that_was_first[postgresql]",
        ("registry/versions:hold_config", ".with_for_update(read=True)", ""),
    ),
    guard(
        "after a mismatch nothing more of the exchange is released",
        f"{RELEASING}E_19_after_a_mismatch_the_exchange_releases_nothing_more[sqlite]",
        (f"{STANDING}:examine", "if stopped.first() is not None:", "if False:"),
    ),
    guard(
        "a mismatch pauses its app",
        f"{RELEASING}E_19_after_a_mismatch_the_exchange_releases_nothing_more[sqlite]",
        (f"{RELEASE}:mismatch", "await pauses.pause_app(change, kept.app_name, reason)", "pass"),
    ),
    guard(
        "an execution after it was settled otherwise is an alarm",
        f"{RELEASING}E_12_what_was_settled_as_not_executed_and_then_shows_is_an_alarm[sqlite]",
        ("approvals/late:note", 'and row.settlement == "not_executed":', "and False:"),
    ),
)  # fmt: skip

PEOPLE = (
    guard(
        "a decision is taken from pending only",
        f"{REVIEWING}a_decision_is_taken_once_whoever_takes_it[sqlite]",
        (f"{DECISIONS}:", ", _REQUESTS.c.state == lifecycle.PENDING", ""),
    ),
    guard(
        "who decides holds the request",
        f"{REVIEWING}E_16_two_who_complete_a_quorum_at_once_decide_it[postgresql]",
        (f"{CASE}:", ".with_for_update(of=ApprovalRequest)", ""),
    ),
    guard(
        "what was approved in time does not expire",
        f"{REVIEWING}an_approval_in_time_beats_an_expiry_that_had_looked_before[sqlite]",
        (f"{DECISIONS}:decide", '_EXPIRE if decision.by == "expiry" else _DECIDE', "_DECIDE"),
    ),
    guard(
        "a decision has a record",
        f"{REVIEWING}E_01_fifty_simultaneous_approvals_make_one_decision[sqlite]",
        (f"{DECISIONS}:decide", "tx.record(record)", "pass"),
    ),
    guard(
        "the digest is that of what was shown",
        "integration/test_api_requests.py::test_a_stale_digest_decides_nothing",
        (f"{CASE}:Case.check_digest", "if shown != self.row.digest:", "if False:"),
    ),
    guard(
        "a stored request matches its digest",
        f"{REVIEWING}a_request_that_was_altered_in_the_database_cannot_be_decided[sqlite]",
        (f"{CASE}:Case.check_digest", "if self.recomputed() != self.row.digest:", "if False:"),
    ),
    guard(
        "no review counts after the deadline",
        f"{REVIEWING}E_03_at_the_deadline_nobody_approves_any_more",
        (f"{CASE}:Case.check_open", "if self.row.deadline <= now:", "if False:"),
    ),
    guard(
        "one person counts once",
        f"{REVIEWING}E_16_one_person_counts_once_whatever_the_channel[sqlite]",
        (f"{REVIEW}:_taken_before",
         "if own is None or (own.verdict, own.digest) != (submission.verdict, submission.digest):",
         "if True:"),
        (f"{REVIEW}:_take", "if found.own is not None:", "if False:"),
        (f"{LIFECYCLE}:capacity", "if person.email.casefold() in heard:", "if False:"),
        ("store/tables:Review", "unique=True,", ""),
    ),
    guard(
        "one person counts once through another, too",
        "integration/test_delegation.py::test_E_16_two_who_speak_for_one_count_once[sqlite]",
        (f"{LIFECYCLE}:capacity", "if delegator.email.casefold() not in heard:", "if True:"),
        (f"{LIFECYCLE}:capacity", "if person.email.casefold() in heard:", "if False:"),
    ),
    guard(
        "a quorum is a quorum",
        f"{REVIEWING}E_16_one_person_counts_once_whatever_the_channel[sqlite]",
        (f"{LIFECYCLE}:outcome", ">= standing.quorum", ">= 1"),
    ),
    guard(
        "nobody decides about an app of their own",
        f"{REVIEWING}B_21_nobody_decides_about_an_app_of_their_own_or_of_their_group",
        (f"{LIFECYCLE}:conflict", "if standing.owner is not None and", "if False and"),
    ),
    guard(
        "nobody decides about a request that names them",
        f"{REVIEWING}B_21_nobody_decides_about_a_request_that_names_them[sqlite]",
        (f"{LIFECYCLE}:conflict", "if standing.end_user is not None and", "if False and"),
    ),
    guard(
        "who is disabled does not review",
        f"{REVIEWING}B_22_a_disabled_reviewer_is_refused_although_the_session_was_read_before"
        "[sqlite]",
        (f"{CASE}:_check_still_welcome", "or now.disabled_at is not None", ""),
    ),
    guard(
        "the review of somebody disabled since does not count",
        f"{REVIEWING}B_22_the_review_of_somebody_disabled_since_does_not_count[sqlite]",
        (f"{CASE}:_vote", "counts = user.disabled_at is None", "counts = True"),
    ),
    guard(
        "the glass is broken in time only",
        "integration/test_break_glass.py::test_only_for_what_was_shown_and_in_time",
        ("approvals/emergency:break_glass", "found.check_open(now)", "pass"),
    ),
    guard(
        "a grant is used no more often than granted",
        f"{GRANTED}two_calls_at_once_never_use_it_more_often_than_granted[postgresql]",
        ("approvals/grants:_use", ", *live(now)", ""),
    ),
    guard(
        "a grant stands in the signed ledger",
        f"{GRANTED}a_grant_that_the_ledger_does_not_have_yet_answers_nothing",
        ("approvals/grants:_candidates", "col(AuditRecord.index).is_not(None),", ""),
    ),
    guard(
        "a grant is as it was recorded",
        f"{GRANTED}B_25_a_grant_that_was_widened_in_the_database_answers_nothing",
        ("approvals/grants:answer", "if not _as_recorded(found, pattern):", "if False:"),
    ),
    guard(
        "an app goes on from its own responses only",
        "e2e/test_bypass.py::test_B_06_a_response_of_another_app_does_not_exist",
        ("proxy/ownership:parent", "or row.app_id != app_id", ""),
    ),
    guard(
        "an app uses the servers it was given only",
        "e2e/test_bypass.py::test_B_12_an_app_uses_only_the_servers_it_was_given",
        ("registry/directory:AppView.may_use",
         "return self.servers is None or label in self.servers", "return True"),
    ),
)  # fmt: skip

RECORDS = (
    guard(
        "rows and records are one commit",
        f"{RECORDED}the_same_transition_is_refused_and_rolls_back[sqlite]",
        (f"{LEDGER}:Ledger.transaction",
         "                if transaction.records:\n"
         "                    await self._insert(session, transaction.records)\n",
         "            if transaction.records:\n"
         "                async with self.db.transaction() as session:\n"
         "                    await self._insert(session, transaction.records)\n"),
    ),
    guard(
        "an exchange is signed for before it is sent",
        f"{SIGNED}nothing_is_sent_before_the_opening_of_the_exchange_is_signed",
        (f"{EXCHANGES}:open_exchange", "await tx.sealed()", "pass"),
    ),
    guard(
        "a request is signed for before anything goes on",
        f"{SIGNED}nothing_goes_on_about_a_request_before_it_is_signed[sqlite]",
        ("approvals/holding:open_hold", "await tx.sealed()", "pass"),
    ),
    guard(
        "a decision is signed for before it is acknowledged",
        f"{SIGNED}a_decision_is_acknowledged_and_sent_only_then[approve]",
        (f"{REVIEW}:review", "await tx.sealed()", "pass"),
    ),
    guard(
        "a release is signed for before a byte is sent",
        f"{SIGNED}an_approval_is_sent_only_when_its_release_is_signed",
        (f"{RELEASE}:_begin", "receipt = await tx.sealed()", "receipt = None"),
    ),
    guard(
        "an outcome is signed for before it is told",
        f"{SIGNED}an_executed_result_is_handed_over_only_then",
        (f"{RELEASE}:observe", "await tx.sealed()", "pass"),
    ),
    guard(
        "an end is signed for before it is told",
        f"{SIGNED}an_end_is_told_only_then",
        (f"{EXCHANGES}:finish", "await tx.sealed()", "pass"),
    ),
    guard(
        "leave is signed for before Azure has it",
        f"{SIGNED}leave_is_given_only_then",
        ("approvals/preallowing:give_leave", "await tx.sealed()", "pass"),
    ),
    guard(
        "a configuration is signed for before it is in force",
        f"{SIGNED}no_change_of_the_configuration_is_acknowledged_or_in_force_before"
        "[sqlite-_save-policy.activated]",
        ("registry/directory:Directory.reload", "await self._settle()", "pass"),
    ),
    guard(
        "an older epoch seals nothing",
        f"{RECORDED}C_16_a_paused_sequencer_cannot_seal_after_another_was_elected[sqlite]",
        (f"{SEQUENCER}:Sequencer._check_place", "if elected != str(self.epoch):", "if False:"),
        (f"{SEQUENCER}:Sequencer._check_place", "if found != size:", "if False:"),
    ),
    guard(
        "an election raises the epoch",
        f"{RECORDED}C_16_a_paused_sequencer_cannot_seal_after_another_was_elected[sqlite]",
        (f"{SEQUENCER}:_raise_epoch", "epoch = int(stored) + 1", "epoch = int(stored)"),
    ),
    guard(
        "a signature is verified before it is stored",
        "integration/test_ledger_replicas.py::"
        "test_C_21_a_signature_that_cannot_be_verified_is_never_stored",
        (f"{SEQUENCER}:Sequencer._write_head", "self._check_signature(", "print("),
    ),
    guard(
        "a database that went back is not signed",
        f"{RECORDED}A_09_an_older_copy_of_the_database_is_not_signed[sqlite]",
        ("audit/heads:check_remembered", "if last.size > size:", "if False:"),
        ("audit/heads:check_remembered", "!= last.root:", "is False:"),
    ),
    guard(
        "what was stored is what was signed",
        f"{RECORDED}a_changed_tile_stops_the_signing[sqlite]",
        (f"{SEQUENCER}:Sequencer._recover", "if head is not None and heads", "if False and heads"),
    ),
    guard(
        "a second process on one file is refused",
        f"{RECORDED}C_27_second_gateway_on_one_sqlite_file_is_refused",
        ("audit/seat:FileSeat.take", "fcntl.LOCK_EX |", "fcntl.LOCK_SH |"),
    ),
)  # fmt: skip

GUARDS: tuple[Guard, ...] = (
    *CLAIMS, *FENCES, *SENDING, *STILL_STANDING, *PEOPLE, *RECORDS,
)  # fmt: skip
