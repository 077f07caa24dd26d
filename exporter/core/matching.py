"""What a budget's match holds: of the bill, or of showback."""

from exporter.config.model import Match
from exporter.core.money import Account, Category, Kind


def holds(match: Match, account: Account) -> bool:
    """Say whether an account of the bill has each key given; `compute` is every category that begins with it."""
    category, *others = account.labels
    is_of_category = match.category in (None, category) or category.startswith(f"{match.category}_")
    wanted = (match.engine, match.model, match.tier)
    return is_of_category and all(key in (None, label) for key, label in zip(wanted, others, strict=True))


def is_part(match: Match, account: Account) -> bool:
    """Say whether an account of showback has each key given; without an engine it is API spend, else busy compute."""
    feature, team, engine, model, tier = account.labels
    category = Category.COMPUTE_BUSY if engine else Category.API
    wanted = (match.feature, feature), (match.team, team)
    is_theirs = all(key in (None, label) for key, label in wanted)
    return is_theirs and holds(match, Account(Kind.SPEND, (category, engine, model, tier)))
