"""Classify vendor errors: the rule engine, and the defaults by HTTP status.

A vendor's table is an ordered tuple of rules; the first rule that matches gives the reason. Rules
match the HTTP status and the structured codes first. Message text comes last: only whole phrases
at the start of a sentence, after quoted and echoed parts were removed, and never bare digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from resilient_imagen.cost import TokenUsage
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
    """The classification of a failed request, from which its exception is built."""

    reason: Reason
    status_word: str | None = None
    """A word of a fixed vocabulary, never the vendor's prose."""
    retry_after: float | None = None
    """Seconds that the server asks to wait."""
    account_wide: bool = False
    message: str = field(default="", repr=False)
    """The vendor's message, not yet redacted."""
    tokens: TokenUsage | None = None
    """Tokens that the failed request used; None if the vendor reported no counts."""


@dataclass(frozen=True, slots=True)
class ClassificationRule:
    """A rule that assigns a reason to the vendor errors that meet all of its conditions."""

    reason: Reason
    codes: Collection[int] = ()
    """HTTP statuses; empty means any."""
    words: frozenset[str] = frozenset()
    """Codes, of which the error has at least one in a structured field; empty means any."""
    message_pattern: re.Pattern[str] | None = None
    """A pattern that occurs in the normalized message; see `says`."""
    predicate: Callable[[VendorError], bool] | None = None
    account_wide: bool = False
    """Whether the failure concerns every model of the account."""
    keep_hint: bool = True
    """Whether to use the server's retry hint."""

    def matches(self, error: VendorError) -> bool:
        """Return whether the error meets all conditions."""
        return (
            (not self.codes or error.status in self.codes)
            and (not self.words or not self.words.isdisjoint(error.codes))
            and (
                self.message_pattern is None
                or self.message_pattern.search(error.normalized_message) is not None
            )
            and (self.predicate is None or self.predicate(error))
        )


def words(text: str) -> frozenset[str]:
    """Return the set of space-separated words, for a rule."""
    return frozenset(text.split())


def says(*phrases: str) -> re.Pattern[str]:
    """Return a pattern that matches one of the phrases at the start of a sentence.

    Phrases are regular expressions in lower case.
    """
    return re.compile(rf"(?:^|[.!?] )(?:\* )?(?:{'|'.join(phrases)})", re.MULTILINE)


def classify(
    error: VendorError, rules: tuple[ClassificationRule, ...], vocabulary: Collection[str]
) -> ClassifiedError:
    """Classify a vendor's error by the first rule that matches.

    Args:
        error: The vendor's error.
        rules: The vendor's rules, tried after BY_WORD and before BY_STATUS.
        vocabulary: The vendor's status words that are allowed in an exception's text.
    """
    rule = next(rule for rule in (*BY_WORD, *rules, *BY_STATUS) if rule.matches(error))
    word = next((name for name in error.raw_codes if name in vocabulary), None)
    return ClassifiedError(
        rule.reason,
        status_word=word or _STATUS_WORDS.get(error.status),
        retry_after=_believable(rule, error.hint),
        account_wide=rule.account_wide,
        message=error.message,
    )


_WORTH_WAITING: Final = frozenset(
    {Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.SERVER_ERROR, Reason.TIMEOUT}
)
_LONG: Final = 600.0
"""Seconds. If a quota is exhausted, a shorter hint is about the per-minute limit, and is wrong."""


def _believable(rule: ClassificationRule, hint: float | None) -> float | None:
    if hint is None or not rule.keep_hint:
        return None
    if rule.reason is Reason.QUOTA_EXHAUSTED:
        return hint if hint >= _LONG else None
    return hint if rule.reason in _WORTH_WAITING else None


_GATEWAY_ERRORS: Final = range(500, 600)
_ANY_STATUS: Final = (200, *range(400, 500), *_GATEWAY_ERRORS)

# Relays use OpenAI's error codes for the models of every vendor.
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
    # Some errors of relays are final in spite of their status. No vendor uses these phrases.
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
    # Conflict, failed dependency, too early: the same request may succeed later.
    ClassificationRule(Reason.SERVER_ERROR, {409, 421, 423, 424, 425}),
    ClassificationRule(Reason.CONNECTION, {407}),
    ClassificationRule(Reason.INVALID_REQUEST, range(400, 500)),
    # 200: an error inside a successful response.
    ClassificationRule(Reason.SERVER_ERROR, {200, *range(500, 600)}),
    ClassificationRule(Reason.INVALID_RESPONSE),
)
"""Rules by HTTP status, for errors that no other rule matches."""

_STATUS_WORDS: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT", 402: "PAYMENT_REQUIRED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    409: "ABORTED", 413: "PAYLOAD_TOO_LARGE", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "BAD_GATEWAY",
    503: "UNAVAILABLE", 520: "INTERNAL", 529: "UNAVAILABLE",
}  # fmt: skip
"""Status words for errors without a vendor's status word; they contain no reason words."""
