"""`cprfl few-shot`: episodes of a few images per novel class, as HP-DVAL evaluates them (IEEE TIP 34, 2025, Table II).

What there is to learn of the base classes is learned once: an experiment with ``first`` trains its image tower on the
base classes alone, and the episodes are trained on that tower's cached features. Without ``first`` the encoder stays
as it is, and nothing is trained on base classes.

Every episode starts from a fresh model, with random numbers of its own; the released engine goes on with the model of
the episode before, so that its tenth one has seen the support images of all ten. Nor does it load what was trained on
the base classes, which serves here.

Scored are the test images that show at least one novel class, with all of their other objects: 1,523 for the six novel
classes in VOC2007's test split, difficult objects included. The released lists have 926, close to the 876 that show
novel classes and nothing else; and its 3,575 base training images seem to be those without any novel object, where we
keep an image that shows both, with the labels of its base classes. So figures compare with the published ones only
roughly.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cprfl import recipe
from cprfl.data.few_shot import episode_of, only_classes, split_classes
from cprfl.data.files import read_record, write_json, write_record
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation.metrics import Evaluation, evaluate
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION, score_test_images
from cprfl.out_of_fold import FOLDS
from cprfl.preparation import Prepared
from cprfl.progress import progress
from cprfl.reading import read_data
from pipelines.lock import one_at_a_time
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import dataset_of, train, training_run
from pipelines.stages.train import evaluate as evaluate_stage
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store

RESULT = "few_shot.json"


@dataclass(frozen=True)
class Episode:
    """What came of an episode.

    Attributes:
        support: ids of the images that it was trained on.
        metrics: percent, of the test images: ``mAP`` over the novel classes, and ``AP/<class>`` of each.
    """

    support: list[str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Shots:
    """The episodes of one K."""

    shots: int
    episodes: list[Episode]

    @property
    def mean(self) -> float:
        """Mean mAP, percent."""
        return float(np.mean([episode.metrics["mAP"] for episode in self.episodes]))

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t); none of a single episode.

        It tells what other draws of support images, and other starts, would change; the test images are the same. Of
        few episodes that differ it may reach beyond 100.
        """
        from scipy.stats import t  # takes a second to import

        number = len(self.episodes)
        if number < 2:
            return None
        deviation = np.std([episode.metrics["mAP"] for episode in self.episodes], ddof=1)
        return float(t.ppf(0.975, number - 1) * deviation / math.sqrt(number))


@dataclass(frozen=True)
class FewShot:
    """What came of all episodes.

    Attributes:
        novel: the novel classes, in the data set's order.
        base: the base classes.
        test_images: how many were scored.
        base_map: mAP of the first experiment over the base classes; none where nothing was trained on them.
        without_test_images: novel classes that no test image shows, which are left out of the means.
        results: one for each K.
        path: of the JSON file that has all of this.
    """

    novel: tuple[str, ...]
    base: tuple[str, ...]
    test_images: int
    base_map: float | None
    without_test_images: list[str]
    results: list[Shots]
    path: Path


@one_at_a_time
def few_shot(experiment: Experiment, novel: Sequence[str], shots: Sequence[int], episodes: int) -> FewShot:
    """Train and score episodes; those that an interrupted call has finished are not run again.

    They run one after the other in this process; the first experiment trains as it is configured, on Ray too. Variants
    are not looked at. What is prepared and trained on the way is in ``outputs/<name>-few-shot`` and ``-few-shot-base``;
    the result is in ``outputs/<name>/few_shot.json`` and one MLflow run of the experiment.

    Args:
        experiment: its method is trained on each episode, with its seed for all of them.
        novel: names of the novel classes; all others are base classes.
        shots: numbers of images per novel class, K.
        episodes: how many of them for each K.

    Raises:
        ConfigError: for names that are no classes, all classes, or settings that episodes cannot be trained with.
        DatasetError: where a novel class has fewer training images than K, or no test image shows any of them.
    """
    _check_settings(experiment)
    store, manifest = open_store(experiment.output_dir), read_data(experiment)
    base, novel = split_classes(manifest.class_names, novel)
    images = only_classes(manifest, novel)
    _check_episodes(experiment, images, shots, episodes)
    named = _named(experiment)
    base_map = _train_on_base(store, named, manifest, novel)
    prepared = preprocess(named, manifest=images, needs=[TEST])
    test = prepared.manifest.split(TEST)
    absent = [name for name, count in zip(novel, test.positives.tolist(), strict=True) if count == 0]
    tags = {"few_shot": ", ".join(novel), "shots": ",".join(map(str, shots)), "episodes": str(episodes)}
    with open_run(store, experiment, tags=tags) as run:
        results = [Shots(count, []) for count in shots]
        wanted = [(result, number) for number in range(episodes) for result in results]
        for result, number in progress(wanted, len(wanted), "few-shot episodes"):
            found = _run_episode(named, prepared, result.shots, number)
            result.episodes.append(found)
            run.sink.log({f"few_shot/mAP_{result.shots}shot_of_episode": found.metrics["mAP"]}, number + 1)
        path = experiment.folder / RESULT
        whole = FewShot(novel, base, len(test), base_map, absent, results, path)
        write_json(path, _in_json(experiment, whole))
        run.log_results(_metrics(whole), path)
    return whole


def _check_settings(experiment: Experiment) -> None:
    if experiment.train.moves_tower:
        raise ConfigError(
            f"train.backbone: {experiment.train.backbone}: episodes are trained on cached features; let `first` train "
            "the tower, on the base classes, and set train.backbone: frozen"
        )
    if experiment.train.validation > 0:
        raise ConfigError(
            "train.validation: an episode has no image to hold out; set it to 0, and train.select to last if it is best"
        )


def _check_episodes(experiment: Experiment, images: Manifest, shots: Sequence[int], episodes: int) -> None:
    """Say what is wrong with the data, and with folds of so few images, before the base classes are trained."""
    folds = experiment.model.folds or (FOLDS if experiment.selects == "folds" else 0)
    for count in shots:
        drawn = [episode_of(images, count, experiment.seed, number) for number in range(episodes)]
        smallest = min(episode.splits.count(TRAIN) for episode in drawn)
        if smallest < folds:
            raise ConfigError(
                f"--shots {count}: model.name={experiment.model.name} looks at {folds} folds of the training images, "
                f"and an episode has {smallest}; raise --shots, or choose a method and train.select without folds"
            )


def _named(experiment: Experiment) -> Experiment:
    """The experiment under a name of its own, so that what `cprfl run` made of it stays."""
    name = f"{experiment.name}-few-shot"
    first = None if experiment.first is None else {**experiment.first, "name": f"{name}-base"}
    return experiment.model_copy(update={"name": name, "first": first, "variants": {}})


def _train_on_base(store: Store, experiment: Experiment, manifest: Manifest, novel: Sequence[str]) -> float | None:
    """Train what comes before on the base classes, unless just that is trained already; its mAP over them."""
    before = experiment.first_experiment
    if before is None:
        print(
            "few-shot: no `first`, so the encoder stays as it is; nothing is trained on base classes", file=sys.stderr
        )
        return None
    whole = dataset_of(before, experiment, manifest)  # which may be another data set, that has novel classes too
    images = only_classes(whole, [name for name in whole.class_names if name not in novel])
    tested = bool(len(images.split(TEST)))
    prepared = preprocess(before, manifest=images, needs=[TEST] if tested else [])
    if not recipe.is_trained(before, prepared):
        with training_run(store, before, prepared) as run:
            checkpoint = train(before, prepared, run, decided=False)
            if tested:
                evaluate_stage(before, prepared, checkpoint, run)
    written = before.folder / EVALUATION
    return Evaluation.read(written).metrics["mAP"] if written.exists() else None


def _run_episode(experiment: Experiment, prepared: Prepared, shots: int, number: int) -> Episode:
    """Train a fresh model on an episode's support images and score the test images.

    The checkpoint is read once and thrown away, so it goes without the tower: the experiment has no ``first`` for it,
    and its features are those of the tower all the same.
    """
    seed = int(np.random.default_rng([experiment.seed, shots, number, 1]).integers(2**31))
    alone = experiment.resources.model_copy(update={"num_workers": 0})
    own = experiment.model_copy(update={"first": None, "seed": seed, "resources": alone})
    episode = replace(prepared, manifest=episode_of(prepared.manifest, shots, experiment.seed, number))
    path = experiment.folder / "episodes" / f"{episode.training_key(own)}.json"
    if path.exists():
        return Episode(**read_record(path, CheckpointError, "remove it, and the episode is trained again"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = recipe.train_in(Path(folder), own, episode)
        scores = score_test_images(own, episode, checkpoint)
    manifest, test = episode.manifest, episode.manifest.split(TEST)
    metrics = evaluate(scores, test.targets(), manifest.class_names, class_counts(manifest), manifest.groups).metrics
    kept = {name: value for name, value in metrics.items() if name == "mAP" or name.startswith("AP/")}
    found = Episode(list(manifest.split(TRAIN).image_ids), kept)
    write_record(path, asdict(found))
    return found


def _metrics(whole: FewShot) -> dict[str, float]:
    """For MLflow: the mean mAP of each K, half of its interval, and that over the base classes."""
    found = {} if whole.base_map is None else {"few_shot/base_mAP": whole.base_map}
    for result in whole.results:
        found[f"few_shot/mAP_{result.shots}shot"] = result.mean
        if (half_width := result.half_width) is not None:
            found[f"few_shot/mAP_{result.shots}shot_half_width"] = half_width
    return found


def _in_json(experiment: Experiment, whole: FewShot) -> dict[str, object]:
    """What ``few_shot.json`` says."""
    return {
        "novel": whole.novel,
        "base": whole.base,
        "base_mAP": whole.base_map,
        "method": experiment.model.name,
        "seed": experiment.seed,
        "protocol": experiment.protocol,
        "test_images": whole.test_images,
        "classes_without_positives": whole.without_test_images,
        "shots": {str(result.shots): _of_shots(result) for result in whole.results},
    }


def _of_shots(result: Shots) -> dict[str, object]:
    episodes = [asdict(episode) for episode in result.episodes]
    return {"mAP": result.mean, "half_width_95": result.half_width, "episodes": episodes}
