"""What an option needs of the others to have an effect: one that nothing would read is refused, or named.

Refused where it was asked for: it differs from the recipe's value. Named, at a run's start, where it is the
recipe's own or an earlier run's, such as the sides of a recipe that is trained by another method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from .config import Config
from .errors import ConfigError


class Need(NamedTuple):
    """What an option needs.

    Attributes:
        words: for people; they follow "with".
        holds: whether a configuration has it.
        neutral: values besides the option's default that ask for nothing that would not be so anyway.
    """

    words: str
    holds: Callable[[Config], bool]
    neutral: tuple[Any, ...] = ()


def _methods(*names: str) -> Need:
    return Need(f"method.name {', '.join(names)}", lambda config: config.method.name in names)


def _both(*needs: Need) -> Need:
    words = " and ".join(need.words for need in needs)
    return Need(words, lambda config: all(need.holds(config) for need in needs))


def _policies(words: str, *starts: str) -> Need:
    return Need(f"data.policy {words}", lambda config: config.data.policy.startswith(starts))


_STIMULATIVE = _methods("stimulative")
_SUBNETS = _both(_STIMULATIVE, Need("method.subnets above 0", lambda config: config.method.subnets > 0))
_CLASSIFIERS = _methods("layer_supervision", "stage_supervision", "self_distillation")
_AUGSUB, _DISTILLATION = _methods("augsub"), _methods("self_distillation")
_DOWNSCALED = Need(
    "method.subnet_inputs downscaled", lambda config: config.method.subnet_inputs == "downscaled"
)
_KL = Need("method.supervision kl", lambda config: config.method.supervision == "kl")
_NORMALIZED = Need("method.normalize layer_norm or l2", lambda config: config.method.normalize != "none")
_WARPED = Need("data.policy that warps", lambda config: config.data.policy not in ("none", "threeaugment"))
_MAIN = Need(
    "method.main_weight above 0",
    lambda config: config.method.main_weight > 0 or not _STIMULATIVE.holds(config),
)
_JUDGED = Need(
    "method.name stimulative, or evaluation.subnets",
    lambda config: _SUBNETS.holds(config) or config.evaluation.subnets != 0,
)
_MOMENTS = Need("optim.name adamw, lamb", lambda config: config.optim.name in ("adamw", "lamb"))

NEEDS: Mapping[str, Need] = {
    "data.min_area": Need(
        "data.augmentation imagenet", lambda config: config.data.augmentation == "imagenet"
    ),
    "data.padding": Need(
        "data.augmentation small", lambda config: config.data.augmentation == "small", neutral=(0,)
    ),
    "data.policy_last": Need("a data.policy", lambda config: config.data.policy != "none"),
    "data.policy_fill": _WARPED,
    "data.policy_operations": _policies("of the randaugments, uniformaugments", "randaug", "uniformaug"),
    "data.policy_magnitude": _policies("of the randaugments", "randaug"),
    "data.policy_deviation": _policies("of the randaugments", "randaug"),
    "data.colour": Need("data.jitter above 0", lambda config: config.data.jitter > 0),
    "data.published_lighting": Need("data.lighting above 0", lambda config: config.data.lighting > 0),
    "data.erase_fill": Need("data.erase above 0", lambda config: config.data.erase > 0),
    "data.mix_switch": Need(
        "data.mixup and data.cutmix above 0",
        lambda config: config.data.mixup > 0 and config.data.cutmix > 0,
    ),
    "data.antialias": _both(_SUBNETS, _DOWNSCALED),
    "method.drop": _AUGSUB,
    "method.drop_ratio": _AUGSUB,
    "method.mask_square": _both(
        _AUGSUB, Need("method.drop masking", lambda config: config.method.drop == "masking")
    ),
    "method.auxiliary_weight": _CLASSIFIERS,
    "method.distillation": _DISTILLATION,
    "method.distillation_temperature": _both(
        _DISTILLATION, Need("method.distillation above 0", lambda config: config.method.distillation > 0)
    ),
    "method.survival": _methods("stochastic_depth"),
    "method.subnets": _STIMULATIVE._replace(neutral=(0,)),
    "method.sampling": _JUDGED,
    "method.space": _JUDGED,
    "method.draws": _SUBNETS,
    "method.subnet_inputs": _SUBNETS,
    "method.sizes": _SUBNETS,
    "method.cascade": _SUBNETS,
    "method.sizes_per_step": _both(_SUBNETS, _DOWNSCALED),
    "method.subnet_share": _SUBNETS,
    "method.supervision": _SUBNETS,
    "method.main_loss": _MAIN,
    "method.label_smoothing": Need(
        "method.main_weight above 0, or method.supervision ce_target",
        lambda config: _MAIN.holds(config) or config.method.supervision == "ce_target",
    ),
    "method.normalize": _STIMULATIVE,
    "method.normalize_main": _both(_STIMULATIVE, _NORMALIZED, _MAIN),
    "method.amplitude": _both(_STIMULATIVE, _NORMALIZED),
    "method.temperature": _both(_SUBNETS, _KL),
    "method.scale_by_teacher": _both(_SUBNETS, _KL),
    "method.ensemble": _both(
        _STIMULATIVE,
        Need("method.subnets above 1", lambda config: config.method.subnets > 1),
        Need("a method.supervision by the main network", lambda c: c.method.supervision != "ce_target"),
    ),
    "method.main_weight": Need(
        f"method.name stimulative or {_CLASSIFIERS.words.removeprefix('method.name ')}",
        lambda config: _STIMULATIVE.holds(config) or _CLASSIFIERS.holds(config),
    ),
    "method.kl_weight": _SUBNETS,
    "method.kl_schedule": _SUBNETS,
    "method.start_epoch": _SUBNETS,
    "method.backward": Need(
        "method.name augsub, or stimulative with method.subnets above 0",
        lambda config: _AUGSUB.holds(config) or _SUBNETS.holds(config),
    ),
    "optim.momentum": Need("optim.name sgd", lambda config: config.optim.name == "sgd"),
    "optim.betas": _MOMENTS,
    "optim.eps": _MOMENTS,
    "optim.decay_on": Need("optim.weight_decay above 0", lambda config: config.optim.weight_decay > 0),
    "optim.warmup_lr": Need("optim.warmup_epochs above 0", lambda config: config.optim.warmup_epochs > 0),
    "evaluation.statistics": Need("evaluation.subnets", lambda config: config.evaluation.subnets != 0),
}
"""The options that some configurations do not read; whatever is not here always counts."""


class Ignored(NamedTuple):
    """An option that nothing reads.

    Attributes:
        name: section.field.
        value: its value, which is not the default.
        default: the value that says nothing.
        need: what it would need.
    """

    name: str
    value: Any
    default: Any
    need: Need

    def __str__(self) -> str:
        """As an error says it."""
        return (
            f"{self.name} is {self.value!r}, which has no effect here; allowed: {self.default!r}, or others "
            f"with {self.need.words}"
        )


def ignored(config: Config) -> Iterator[Ignored]:
    """The options that are not at their defaults, and that nothing reads."""
    for section in fields(Config):
        values = getattr(config, section.name)
        for field in fields(values) if section.name != "recipe" else ():
            name, value = f"{section.name}.{field.name}", getattr(values, field.name)
            need = NEEDS.get(name)
            if need is None or value in (field.default, *need.neutral) or need.holds(config):
                continue
            yield Ignored(name, value, field.default, need)


def cleared(config: Config) -> Config:
    """The same run, with the defaults of all options that nothing reads."""
    changes: dict[str, dict[str, Any]] = {}
    for each in ignored(config):
        section, _, field = each.name.partition(".")
        changes.setdefault(section, {})[field] = each.default
    sections: dict[str, Any] = {
        section: replace(getattr(config, section), **values) for section, values in changes.items()
    }
    return replace(config, **sections)


def refuse_ignored(pairs: Iterable[tuple[Config, Config]]) -> None:
    """Refuse what was asked for and has no effect.

    Args:
        pairs: a recipe and what the command line made of it; with several recipes, an option counts if one
            of them reads it.

    Raises:
        ConfigError: the first such option.
    """
    asked = [_asked(*pair) for pair in pairs]
    for name, found in asked[0].items():
        if all(name in other for other in asked[1:]):
            raise ConfigError(str(found))


def _asked(recipe: Config, config: Config) -> dict[str, Ignored]:
    """The ignored options whose values are not the recipe's, by name."""
    found = {}
    for each in ignored(config):
        section, _, field = each.name.partition(".")
        if getattr(getattr(recipe, section), field) != each.value:
            found[each.name] = each
    return found


def notes(config: Config) -> Sequence[str]:
    """A line that names what a configuration holds without effect, if it holds such."""
    names = [each.name for each in ignored(config)]
    if not names:
        return []
    return [f"has no effect in this run: {', '.join(names)}"]
