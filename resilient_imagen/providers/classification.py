"""From what was said to a reason: the rules' machinery, and what the HTTP status alone tells.

A vendor's table is an ordered tuple of rules; the first that fits gives the reason. Rules look at
the HTTP status and the structured words first. Text comes last: only whole phrases at the start of
a sentence, with whatever may have been quoted or echoed taken out, and never bare digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from resilient_imagen.providers.base import TokenUsage
    from resilient_imagen.providers.error_body import VendorError

__all__ = [
    "BY_STATUS",
    "BY_WORD",
    "ClassificationRule",
    "ClassifiedError",
    "classify",
    "says",
    "words",
]


@dataclass(frozen=True, slots=True)
class ClassifiedError:
    """Why a request failed, before it becomes an error."""

    reason: Reason
    status_word: str | None = None
    """From a fixed vocabulary, never the vendor's prose."""
    retry_after: float | None = None
    """Seconds."""
    account_wide: bool = False
    message: str = field(default="", repr=False)
    """The vendor's message as it came: to be redacted."""
    tokens: TokenUsage | None = None
    """What was used all the same; None when nothing is told."""


@dataclass(frozen=True, slots=True)
class ClassificationRule:
    """Gives a reason to the complaints that meet all of its conditions."""

    reason: Reason
    codes: Collection[int] = ()
    """HTTP statuses; none means any."""
    words: frozenset[str] = frozenset()
    """One of them stands in a structured field."""
    message_pattern: re.Pattern[str] | None = None
    """The vendor's own words begin a sentence like this."""
    predicate: Callable[[VendorError], bool] | None = None
    account_wide: bool = False
    """Every model of the account is concerned."""
    keep_hint: bool = True
    """Whether the server's hint is to be believed."""

    def matches(self, complaint: VendorError) -> bool:
        """Whether the complaint meets all conditions."""
        return (
            (not self.codes or complaint.status in self.codes)
            and (not self.words or not self.words.isdisjoint(complaint.codes))
            and (
                self.message_pattern is None
                or self.message_pattern.search(complaint.normalized_message) is not None
            )
            and (self.predicate is None or self.predicate(complaint))
        )


def words(text: str) -> frozenset[str]:
    """Words for a rule, separated by spaces."""
    return frozenset(text.split())


def says(*phrases: str) -> re.Pattern[str]:
    """A rule's phrases, as regular expressions in lower case, each at the start of a sentence."""
    return re.compile(rf"(?:^|[.!?] )(?:\* )?(?:{'|'.join(phrases)})", re.MULTILINE)


def classify(
    complaint: VendorError, rules: tuple[ClassificationRule, ...], vocabulary: Collection[str]
) -> ClassifiedError:
    """The failure by the first rule that fits.

    Args:
        complaint: What was said.
        rules: The vendor's own, asked after BY_WORD and before BY_STATUS.
        vocabulary: The vendor's status words that may stand in an error's text.
    """
    rule = next(rule for rule in (*BY_WORD, *rules, *BY_STATUS) if rule.matches(complaint))
    word = next((name for name in complaint.raw_codes if name in vocabulary), None)
    return ClassifiedError(
        rule.reason,
        status_word=word or _STATUS_WORDS.get(complaint.status),
        retry_after=_believable(rule, complaint.hint),
        account_wide=rule.account_wide,
        message=complaint.message,
    )


_WORTH_WAITING: Final = frozenset(
    {Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.SERVER_ERROR, Reason.TIMEOUT}
)
_LONG: Final = 600.0
"""Seconds. With a used-up quota shorter hints come from the minute's bucket, and are wrong."""


def _believable(rule: ClassificationRule, hint: float | None) -> float | None:
    if hint is None or not rule.keep_hint:
        return None
    if rule.reason is Reason.QUOTA_EXHAUSTED:
        return hint if hint >= _LONG else None
    return hint if rule.reason in _WORTH_WAITING else None


_GATEWAY_ERRORS: Final = range(500, 600)
_ANY_STATUS: Final = (200, *range(400, 500), *_GATEWAY_ERRORS)

# Relays that stand between us and a vendor speak OpenAI's language for every vendor.
BY_WORD: Final = (
    ClassificationRule(
        Reason.CONTENT_BLOCKED,
        _ANY_STATUS,
        words(
            "moderation_blocked content_policy_violation content_filter contentfilter "
            "responsibleaipolicyviolation prohibited_content image_safety"
        ),
    ),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        _ANY_STATUS,
        words(
            "insufficient_quota billing_hard_limit_reached billing_not_active billing_disabled "
            "insufficient_user_quota insufficient_credits pre_consume_token_quota_failed"
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.MODEL_NOT_FOUND, {200, 400, *_GATEWAY_ERRORS}, words("model_not_found")
    ),
)
"""Codes that have the same meaning for every vendor."""

BY_STATUS: Final = (
    # Of a relay's own errors some are final whatever their status; no vendor says these phrases.
    ClassificationRule(
        Reason.MODEL_NOT_FOUND,
        _GATEWAY_ERRORS,
        message_pattern=says(
            "no available compatible accounts", "no available channel", "当前分组.*无可用渠道"
        ),
    ),
    ClassificationRule(
        Reason.FORBIDDEN, _GATEWAY_ERRORS, message_pattern=says("upstream access forbidden")
    ),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        _GATEWAY_ERRORS,
        message_pattern=says("no (?:available )?accounts? with (?:available )?quota"),
    ),
    ClassificationRule(Reason.OVERLOADED, {499, 503, 529}),
    ClassificationRule(Reason.RATE_LIMITED, {429}),
    ClassificationRule(Reason.QUOTA_EXHAUSTED, {402}, account_wide=True),
    ClassificationRule(Reason.TIMEOUT, {408, 504, 524, 598, 599}),
    ClassificationRule(Reason.UNAUTHENTICATED, {401}, account_wide=True),
    ClassificationRule(Reason.FORBIDDEN, {403, 451}),
    ClassificationRule(Reason.MODEL_NOT_FOUND, {404, 405, 410}),
    # A conflict, a dependency that failed, too early: the same request may pass later.
    ClassificationRule(Reason.SERVER_ERROR, {409, 421, 423, 424, 425}),
    ClassificationRule(Reason.CONNECTION, {407}),
    ClassificationRule(Reason.INVALID_REQUEST, range(400, 500)),
    # An error inside a 200, too.
    ClassificationRule(Reason.SERVER_ERROR, {200, *range(500, 600)}),
    ClassificationRule(Reason.INVALID_RESPONSE),
)
"""What the HTTP status says where nothing else is known."""

_STATUS_WORDS: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT", 402: "PAYMENT_REQUIRED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    409: "ABORTED", 413: "PAYLOAD_TOO_LARGE", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "BAD_GATEWAY",
    503: "UNAVAILABLE", 520: "INTERNAL", 529: "UNAVAILABLE",
}  # fmt: skip
"""Stand in a text where the vendor sent no word of its own; none holds a reason word."""
