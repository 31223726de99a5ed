"""Checks of what a model scores: probabilities, thresholds, and what means hide."""

from __future__ import annotations

import numpy as np

from cprfl.data.manifest import VALIDATION
from cprfl.evaluation.reliability import BINS, Bins, calibration_error
from cprfl.report.baselines import LINEAR, ZERO_SHOT, too_many
from cprfl.report.checks.base import FEW, MODEL, Check, Seen
from cprfl.report.mends import beating
from cprfl.words import counted

_OFF = 1.0  # points of calibration error that matter
_HIDDEN = 20.0  # points of AP below the mean of the group
_SIMULATED = 1000
_LITTLE = 10  # held-out images that show a class: of fewer, one more or less moves its threshold
_FIT = "`cprfl train CONFIG` fits them where images are held out (train.validation: 0.2, or decisions.folds: 3)"


def calibration_off(seen: Seen) -> Check:
    """Whether probabilities are further from what is true than the sampling of the test images alone would have it."""
    code, off, said = "calibration-off", list[str](), list[str]()
    for group, bins in seen.reliability.items():
        error, chance = calibration_error(bins.table()), _by_chance(bins)
        said.append(f"{group} {error:.1f} (by chance up to {chance:.1f})")
        if error > max(chance, _OFF):
            off.append(group)
    listed = f"Expected calibration error, points: {', '.join(said)}."
    if not off:
        return Check(code, "Probabilities are as often right as they say", "passed", listed)
    if not seen.results.decisions.source:
        mend = f"They are plain sigmoids of the logits; {_FIT}."
    elif seen.results.decisions_config.calibration == "none":
        mend = "They are plain sigmoids of the logits, as decisions.calibration: none has it; platt fits them."
    else:
        mend = (
            "Test images may show the classes more or less often than training images; calibrate on images of where "
            "the model is used (train.validation, or more held-out images)."
        )
    whose = "" if "total" in off else f" of {' and '.join(off)}"
    return Check(code, f"Probabilities{whose} are not to be taken at their word", "issue",
                 f"{listed} {mend}")  # fmt: skip


def _by_chance(bins: Bins) -> float:
    """Calibration error, percent, that perfect probabilities stay below in 97.5 % of the samples.

    The share that is right of a bin deviates from its mean probability as a sum of coins of these probabilities does.
    """
    away_SB = np.abs(np.random.default_rng(0).normal(size=(_SIMULATED, BINS)) * np.sqrt(bins.variance_B))
    return float(100 * np.quantile(away_SB.sum(axis=1), 0.975) / bins.count_B.sum())


def thresholds_fitted(seen: Seen) -> Check:
    """Whether each class has a threshold of its own."""
    code, source = "thresholds-not-fitted", seen.results.decisions.source
    if source:
        return Check(code, "Thresholds are fitted", "passed", f"On {source}.")
    return Check(
        code, "Every class counts as found from 0.5 on", "tip",
        f"Rare classes have their best threshold far below that, and are hardly ever found; {_FIT}.",
    )  # fmt: skip


def threshold_at_edge(seen: Seen) -> Check:
    """Whether there are thresholds that decide nothing: no test image is above, or none below."""
    code, decisions = "threshold-at-edge", seen.results.decisions
    if not decisions.source:
        return Check(code, "No thresholds are fitted", "not applicable", "See thresholds-not-fitted.")
    tested, found_NC = seen.positives_C > 0, seen.found
    never, always = (np.flatnonzero(edge & tested) for edge in (~found_NC.any(axis=0), found_NC.all(axis=0)))
    if not len(never) and not len(always) and not decisions.short:
        return Check(code, "Every threshold tells test images apart", "passed",
                     "Each has test images on both sides.")  # fmt: skip
    said = [f"never found in a test image: {seen.names(never)}"] if len(never) else []
    said += [f"found in every test image: {seen.names(always)}"] if len(always) else []
    short = np.array([decisions.class_names.index(name) for name in decisions.short], dtype=int)
    if len(short):
        said.append(f"what decisions.wanted asks for is reached at no threshold: {seen.names(short)}")
    joined, edge = "; ".join(said), np.union1d(never, always)
    return Check(
        code,
        f"{counted(len(edge), 'class')} whose threshold decides nothing" if len(edge)
        else f"{counted(len(short), 'class')} without the wanted {seen.results.decisions_config.threshold}",
        "issue" if len(edge) else "tip",
        f"{joined[0].upper()}{joined[1:]}. {_mend_of_thresholds(seen, edge, short)}",
    )  # fmt: skip


def _mend_of_thresholds(seen: Seen, edge: np.ndarray, short: np.ndarray) -> str:
    """What would move the thresholds of these classes, given how they were chosen."""
    wanted, manifest = seen.results.decisions_config, seen.results.manifest
    held_out = manifest.split(VALIDATION) if VALIDATION in manifest.splits else seen.results.training
    positives_C = np.asarray(held_out.positives)
    few = positives_C[np.union1d(edge, short)] < _LITTLE
    mends = [("Few held-out images show them: label more" if few.all() else "Few held-out images show some: label more")
             if few.any() else "Look at their images in the report"]  # fmt: skip
    leaning = edge if wanted.threshold == "f1" else np.intersect1d(edge, short)  # else their own counts decide
    if not wanted.one_for_all and wanted.threshold != "recall" and positives_C[leaning].any():
        mends.append("raise decisions.shrinkage so that they lean on their group")
    if wanted.wanted is not None:
        mends.append("ask for less (decisions.wanted)")
    return f"{', or '.join(mends)}."


def hidden_by_mean(seen: Seen) -> Check:
    """Whether the mean of a group hides a class at which the model fails."""
    code, hidden = "class-hidden-by-mean", list[str]()
    intervals = seen.precision.classes(MODEL)
    for group, classes in seen.groups.items():
        mean = seen.precision.mean(MODEL, group)
        for label in classes:
            found = intervals[label]
            if mean is None or found is None or seen.positives_C[label] < FEW:
                continue
            if found.value < min(mean.value / 2, mean.value - _HIDDEN) and found.high < mean.value:
                hidden.append(
                    f"{seen.results.manifest.class_names[label]} ({found.value:.0f}, {group} {mean.value:.0f})"
                )
    if not hidden:
        return Check(code, "No class falls far behind its group", "passed",
                     f"None has less than half of its group's mean AP and {_HIDDEN:.0f} points less.")  # fmt: skip
    more = f" and {len(hidden) - 5} more" if len(hidden) > 5 else ""
    return Check(
        code, f"{counted(len(hidden), 'class')} far behind the mean of the group", "issue",
        f"AP, percent, beside its group's mean: {', '.join(hidden[:5])}{more}. Look at their images in the report: "
        "labels that are wrong, or another class that they are taken for.",
    )  # fmt: skip


def epoch_chosen_on_test(seen: Seen) -> Check:
    """Whether the metrics are of the epoch that was the best on the very images that they are of."""
    code = "epoch-chosen-on-test"
    experiment = seen.results.experiment
    if experiment.protocol == "honest" or not experiment.epochs:
        return Check(code, "The test images chose nothing", "passed", "They were scored once, in the end.")
    mend = "" if experiment.train.moves_tower else " (train.select: folds chooses an epoch without the test images)"
    return Check(
        code, f"The epoch ({seen.results.info.epoch}) was chosen on the test images", "issue",
        "The metrics are too high, by points where test images are few: only compare them with figures of the same "
        f"protocol. Set protocol: honest{mend}.",
    )  # fmt: skip


def below_baseline(seen: Seen, code: str, baseline: str, words: str) -> Check:
    """Whether the model is better than another on the same features, in resamples of the same test images."""
    if baseline not in seen.results.baselines:
        return _no_baseline(seen, code, baseline, words)
    gains = {group: seen.precision.gain(MODEL, baseline, group) for group in seen.precision.groups}
    there = {group: gain for group, gain in gains.items() if gain is not None}
    listed = ", ".join(f"{group} {gain.signed}" for group, gain in there.items())
    behind = [group for group, gain in there.items() if gain.below_zero]
    gains_C = seen.precision.class_gains(MODEL, baseline)
    tested = [
        (label, gain) for label, gain in enumerate(gains_C) if gain is not None and seen.positives_C[label] >= FEW
    ]
    worse = np.array([label for label, gain in tested if gain.below_zero], dtype=int)
    one_by_one = f" Classes that it ranks worse: {seen.names(worse)}." if len(worse) else ""
    explanation = f"Points of mAP against it, with 95 % intervals: {listed}.{one_by_one}"
    if "total" not in there:
        return Check(code, "No test image shows a class", "skipped", "There is nothing to compare by.")
    if behind:
        where = "" if "total" in behind else f" on {' and '.join(behind)}"
        return Check(code, f"Below {words}{where}", "issue",
                     f"{explanation} Take that instead (it is a variant away: model.name: {baseline}), or "
                     f"{beating(seen.results.experiment)}.")  # fmt: skip
    if not there["total"].above_zero:
        return Check(code, f"Not to be told from {words}", "tip",
                     f"{explanation} More test images would tell; the simpler model is the safer one.")  # fmt: skip
    return Check(code, f"{there['total'].value:.1f} points of mAP above {words}", "passed", explanation)


def _no_baseline(seen: Seen, code: str, baseline: str, words: str) -> Check:
    experiment = seen.results.experiment
    if experiment.model.name == baseline:
        return Check(code, f"The model is {words} itself", "not applicable", "There is nothing to compare it with.")
    if experiment.train.moves_tower:
        return Check(code, f"No {baseline} on a tower that moves", "not applicable",
                     "There are no cached features; compare with an experiment whose train.backbone is frozen: "
                     "`cprfl compare RUN RUN`.")  # fmt: skip
    if baseline == ZERO_SHOT and (not experiment.joint_space or experiment.tower_training is not None):
        return Check(code, "Images and class names share no space", "not applicable",
                     "Zero-shot needs one CLIP as encoder and text_encoder, as it was trained.")  # fmt: skip
    title = f"{words[0].upper()}{words[1:]} was not scored"
    if baseline == LINEAR and too_many(seen.results.training):
        return Check(code, title, "skipped",
                     f"It takes too long on so many images; a variant with model.name: {baseline} trains it once, and "
                     "`cprfl compare RUN RUN` compares.")  # fmt: skip
    return Check(code, title, "skipped", "`cprfl report CONFIG` scores it on the cached features.")
