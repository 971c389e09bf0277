"""Repetitions: the shrinkage's closed form, where they are spent, what they are worth, and that both are shown."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from autopeft.dashboards.front import front_records, observed_text
from autopeft.dashboards.header import cards

from autopeft.cli.tables import front_table
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.repetition import LEAST, Shrinkage, believed, pooled_noise
from autopeft.domain.results import Front, score
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.export.card import write_card
from autopeft.export.tables import front_rows, trial_rows, write_front, write_trials
from autopeft.search.repeating import RepeatingSampler
from autopeft.search.samplers import make_sampler
from tests.fakes.searches import ToySampler, ToySpace, toy_objectives
from tests.unit import dashboard_runs as runs

OBJECTIVES = toy_objectives()


def ended(number, candidate, accuracy, memory=None, seed=0, status=TrialStatus.COMPLETE, steps=10):
    """A trial of the toy space; `candidate` is the number of its proposal."""
    proposal = ToySampler().ask(candidate)
    measured = Measurements(
        quality={"accuracy": accuracy},
        steps=steps,
        planned_steps=10,
        train_peak=PeakMemory(live_bytes=memory or 1000 + candidate, source=MemorySource.TRACKED),
    )
    return Trial(
        number=number,
        candidate=proposal.candidate,
        parameters=proposal.parameters,
        seed=seed,
        status=status,
        attempt=1,
        measurements=measured,
    )


def scored(*rows):
    return [score(ended(number, *row), OBJECTIVES) for number, row in enumerate(rows)]


def test_the_posterior_is_that_of_the_normal_model():
    """Against the conditional distribution of a joint normal, written as matrices."""
    model, observed = Shrinkage(centre=0.6, between=0.02, noise=0.005), [0.8, 0.7, 0.75]
    found = model.estimate(observed)
    joint = np.full((4, 4), model.between) + np.diag([0.0, *[model.noise] * 3])
    gain = joint[0, 1:] @ np.linalg.inv(joint[1:, 1:])
    assert found.posterior == pytest.approx(0.6 + gain @ (np.array(observed) - 0.6))
    assert found.sd**2 == pytest.approx(joint[0, 0] - gain @ joint[1:, 0])
    assert (found.count, found.mean) == (3, pytest.approx(0.75))
    assert found.spread == pytest.approx(0.05)
    assert model.estimate([0.8]).spread is None


def test_noise_is_pooled_from_repetitions_and_the_rest_lies_between_candidates():
    rng = np.random.default_rng(0)
    truth = rng.normal(0.6, 0.1, 4000)
    observed = [list(rng.normal(one, 0.05, 1 + number % 3)) for number, one in enumerate(truth)]
    found = Shrinkage.of(observed)
    assert math.sqrt(found.noise) == pytest.approx(0.05, rel=0.05)
    assert math.sqrt(found.between) == pytest.approx(0.1, rel=0.05)
    assert found.centre == pytest.approx(0.6, abs=0.01)
    assert pooled_noise([[1.0, 3.0], [5.0], [1.0, 1.0, 4.0]]) == pytest.approx((2 + 6) / 3)
    errors = [found.estimate(one).posterior - true for one, true in zip(observed, truth, strict=True)]
    plain = [np.mean(one) - true for one, true in zip(observed, truth, strict=True)]
    assert np.mean(np.square(errors)) < np.mean(np.square(plain)), "shrinking errs less"


def test_differences_that_are_no_larger_than_noise_are_taken_for_noise():
    found = Shrinkage.of([[0.5, 0.7], [0.6, 0.62], [0.62, 0.58]])
    assert 0 < found.between < found.noise
    low, high = (found.estimate([one]).posterior for one in (0.5, 0.7))
    assert 0 < high - low < 0.1, "most of it, and never all: their order stays"
    same = Shrinkage.of([[0.5, 0.5], [0.5]])
    assert same.estimate([0.5]).posterior == 0.5
    assert same.estimate([0.5]).sd == 0.0


def test_without_repetitions_nothing_changes():
    trials = scored((0, 0.5), (1, 0.7), (2, 0.6, None, 0, TrialStatus.CRASHED))
    beliefs = believed(OBJECTIVES, trials)
    assert list(beliefs.points) == trials
    assert not beliefs.estimates
    assert not beliefs.first


def test_a_candidate_is_one_point_with_the_mean_until_enough_was_repeated_and_then_with_the_posterior_mean():
    rows = [(0, 0.9, 100), (1, 0.7, 90), (2, 0.5, 80), (0, 0.7, 104, 7)]
    beliefs = believed(OBJECTIVES, scored(*rows))
    assert [one.trial.number for one in beliefs.points] == [0, 1, 2]
    assert beliefs.points[0].values == pytest.approx((0.8, 102))
    assert beliefs.first == {3: 0}
    rows += [(1, 0.72, 90, 7), (2, 0.46, 80, 7)]
    assert len(rows) - 3 == LEAST
    beliefs = believed(OBJECTIVES, scored(*rows))
    model = Shrinkage.of([[0.9, 0.7], [0.7, 0.72], [0.5, 0.46]])
    assert beliefs.points[0].values == pytest.approx((model.estimate([0.9, 0.7]).posterior, 102))
    assert beliefs.estimates[0].posterior < beliefs.estimates[0].mean == pytest.approx(0.8)


def searched(share, count, noise=0.05, seed=0, least_memory=1000):
    """A search of the toy space by random draws: quality is known here, observed with noise."""
    sampler = RepeatingSampler(ToySampler(seed), OBJECTIVES, share, seed)
    rng, history = np.random.default_rng(seed), []
    for number in range(count):
        proposal = sampler.ask(number)
        trial = outcome(proposal, number, rng, noise, least_memory)
        history.append(score(trial, OBJECTIVES))
        sampler.tell(history[-1])
    return history


def truth(candidate):
    """Quality without noise: grows with the rank, as memory does."""
    return 0.5 + 0.05 * math.log2(candidate.insertions[0].settings["rank"])


def outcome(proposal, number, rng, noise, least_memory=1000):
    rank = proposal.candidate.insertions[0].settings["rank"]
    measured = Measurements(
        quality={"accuracy": truth(proposal.candidate) + noise * rng.normal()},
        steps=10,
        planned_steps=10,
        train_peak=PeakMemory(live_bytes=least_memory + rank, source=MemorySource.TRACKED),
    )
    return Trial(
        number=number,
        candidate=proposal.candidate,
        parameters=proposal.parameters,
        seed=0 if proposal.seed is None else proposal.seed,
        status=TrialStatus.COMPLETE,
        attempt=1,
        measurements=measured,
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_share_of_the_budget_is_kept_at_every_moment_and_used(share):
    history = searched(share, 40)
    seen, repetitions = set(), 0
    for number, one in enumerate(history, start=1):
        repetitions += one.trial.digest in seen
        seen.add(one.trial.digest)
        assert repetitions <= share * number
    assert repetitions == math.floor(share * 40)


def test_repetitions_have_seeds_of_their_own_and_only_what_is_near_the_front_is_repeated():
    history = searched(0.3, 40)
    by_digest = {}
    for one in history:
        by_digest.setdefault(one.trial.digest, []).append(one.trial)
    assert all(len({trial.seed for trial in group}) == len(group) for group in by_digest.values())
    second = {group[1].seed for group in by_digest.values() if len(group) > 1}
    assert len(second) == 1, "repetitions can be compared with each other as first trainings can"
    first = {digest: group[0] for digest, group in by_digest.items()}
    ranks = {digest: one.candidate.insertions[0].settings["rank"] for digest, one in first.items()}
    seen = {digest: one.measurements.quality["accuracy"] for digest, one in first.items()}
    short = {
        digest: max(seen[other] for other in seen if ranks[other] <= rank) - seen[digest]
        for digest, rank in ranks.items()
    }
    again = [short[digest] for digest, group in by_digest.items() if len(group) > 1]
    once = [short[digest] for digest, group in by_digest.items() if len(group) == 1]
    assert len(again) > 3
    assert np.median(again) < np.median(once)


def test_steps_count_as_trials_do():
    """Where most trials were stopped early, repetitions, which are whole, take more than their share of trials."""
    sampler = RepeatingSampler(ToySampler(), OBJECTIVES, 0.2, 0)
    for number in range(20):
        status = TrialStatus.COMPLETE if number < 5 else TrialStatus.STOPPED_EARLY
        steps = 10 if number < 5 else 1
        sampler.tell(score(ended(number, number, 0.5 + 0.01 * number, None, 0, status, steps), OBJECTIVES))
    # 65 steps were done: with one repetition, 10 of 75 are within a fifth; with two, 20 of 85 are not.
    assert sampler.ask(20).seed is not None
    assert sampler.ask(21).seed is None


def test_the_repetition_of_which_the_front_gains_most_is_chosen():
    """By sampling: the hypervolume of the posterior means, had one candidate been observed once more."""
    rows = [(0, 0.50, 100), (1, 0.58, 110), (2, 0.60, 120), (3, 0.80, 200), (4, 0.1, 190)]
    trials = scored(*rows)
    worth = RepeatingSampler(ToySampler(), OBJECTIVES, 0.5, 0)._worth(trials)
    noise = float(np.var([row[1] for row in rows], ddof=1)) / 2
    model = Shrinkage.of([[row[1]] for row in rows], noise)
    rng, now = np.random.default_rng(0), volume([row[1] for row in rows], [row[2] for row in rows])
    for number, row in enumerate(rows[:4]):
        variance = model.estimate([row[1]]).sd ** 2
        after = []
        for move in rng.normal(0, variance / math.sqrt(variance + noise), 4000):
            quality = [other[1] + (move if at == number else 0.0) for at, other in enumerate(rows)]
            after.append(volume(quality, [other[2] for other in rows]))
        # The nodes are coarse where the front has a corner; they order candidates.
        assert worth[number] == pytest.approx(np.mean(after) - now, abs=0.25 * (np.mean(after) - now) + 0.004)
    assert 4 not in worth, "what stays dominated is not repeated"
    sampler = RepeatingSampler(ToySampler(), OBJECTIVES, 0.5, 0)
    for one in trials:
        sampler.tell(one)
    assert sampler.ask(5).candidate == ToySampler().ask(max(worth, key=worth.get)).candidate


def volume(quality, memory):
    """By steps, in the box of the rows above: up to a tenth beyond the worst, in shares of the spans."""
    best, total = -math.inf, 0.0
    order = sorted(range(len(memory)), key=lambda index: memory[index])
    for at, following in pairwise([*order, None]):
        best = max(best, quality[at])
        right = 210 if following is None else memory[following]
        total += max(0.0, best - (0.1 - 0.07)) / 0.7 * (right - memory[at]) / 100
    return total


def test_a_resumed_search_repeats_what_an_undisturbed_one_does():
    history = searched(0.3, 24)
    for at in range(4, 24):
        resumed = RepeatingSampler(ToySampler(), OBJECTIVES, 0.3, 0)
        resumed.replay(history[:at])
        proposal = resumed.ask(at)
        assert proposal.candidate == history[at].trial.candidate
        assert (proposal.seed or 0) == history[at].trial.seed


def test_two_workers_do_not_repeat_the_same_candidate_at_once():
    sampler = RepeatingSampler(ToySampler(), OBJECTIVES, 0.5, 0)
    for one in searched(0.0, 8):
        sampler.tell(one)
    proposals = [sampler.ask(number) for number in range(8, 12)]
    repeated = [one.candidate.digest for one in proposals if one.seed is not None]
    assert len(repeated) >= 2
    assert len(set(repeated)) == len(repeated)


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2", "evolution"])
def test_every_sampler_takes_trials_that_it_did_not_propose(name):
    inner = make_sampler(name, ToySpace(), OBJECTIVES, 0)
    sampler, rng = RepeatingSampler(inner, OBJECTIVES, 0.4, 0), np.random.default_rng(0)
    seen = []
    for number in range(12):
        proposal = sampler.ask(number)
        seen.append((proposal.candidate.digest, proposal.seed))
        sampler.tell(score(outcome(proposal, number, rng, 0.05), OBJECTIVES))
    assert len(set(seen)) == 12
    assert len({digest for digest, _ in seen}) < 12


def chosen(share, seed, candidates=12, trainings=24, noise=0.08):
    """True quality of the point that a search of a small space takes, and what it claims of it.

    Memory is the same for all, so that the front is one point; a training of a candidate observes the same in both.
    """
    draws = np.random.default_rng(seed)
    digests = [ToySampler().ask(number).candidate.digest for number in range(candidates)]
    quality = dict(zip(digests, draws.normal(0.6, noise, candidates), strict=True))
    errors = {digest: noise * draws.normal(size=trainings) for digest in digests}
    sampler, times, history = RepeatingSampler(ToySampler(size=candidates), OBJECTIVES, share, seed), Counter(), []
    fresh = 0
    for number in range(trainings):
        proposal = sampler.ask(number)
        if proposal is None or proposal.seed is None:
            if fresh == candidates:
                break
            proposal, fresh = ToySampler().ask(fresh), fresh + 1
        digest = proposal.candidate.digest
        trial = ended(number, 0, quality[digest] + errors[digest][times[digest]], 1000, proposal.seed or 0)
        trial = trial.model_copy(update={"candidate": proposal.candidate, "parameters": proposal.parameters})
        times[digest] += 1
        history.append(score(trial, OBJECTIVES))
        sampler.tell(history[-1])
    (best,) = Front.of(OBJECTIVES, believed(OBJECTIVES, history).points).members
    return quality[best.trial.digest], best.values[0]


@pytest.mark.slow
def test_the_winners_curse_is_lessened():
    """With as much noise as there are differences, the best of one training each is mostly luck."""
    once, again = (np.array([chosen(share, seed) for seed in range(60)]) for share in (0.0, 0.5))
    claimed = [float(np.mean(one[:, 1] - one[:, 0])) for one in (once, again)]
    assert claimed[0] > 0.05
    assert abs(claimed[1]) < 0.3 * claimed[0], "what is claimed of it is nearer to the truth"
    gain = again[:, 0] - once[:, 0]
    assert gain.mean() > 2 * gain.std(ddof=1) / math.sqrt(len(gain)), "and what is chosen is better"


@pytest.fixture(scope="module")
def repeated():
    """A run of the report's tests in which three points of the front were trained again."""
    results = runs.results(40)
    trials = list(results.trials)
    for one in list(results.front.members)[:3]:
        measured = one.trial.measurements
        quality = {"accuracy": measured.quality["accuracy"] - 0.02, "f1": 0.5}
        trial = one.trial.model_copy(
            update={
                "number": len(trials),
                "seed": 99,
                "measurements": measured.model_copy(update={"quality": quality}),
            }
        )
        trials.append(score(trial, results.objectives))
    beliefs = believed(results.objectives, trials)
    return replace(results, trials=tuple(trials), front=Front.of(results.objectives, beliefs.points))


def test_tables_and_exports_name_both_numbers(repeated, tmp_path):
    beliefs = believed(repeated.objectives, repeated.trials)
    front = {row["trial"]: row for row in front_rows(repeated)}
    several = [number for number, one in beliefs.estimates.items() if one.count == 2 and number in front]
    assert several
    for number in several:
        estimate, row = beliefs.estimates[number], front[number]
        assert row["accuracy"] == estimate.posterior
        assert row["accuracy_observed"] == estimate.mean
        assert row["accuracy_observed_sd"] == pytest.approx(0.02 / math.sqrt(2))
        assert (row["accuracy_observations"], row["accuracy_posterior_sd"]) == (2, estimate.sd)
    header = write_front(repeated, tmp_path / "front.csv").read_text().splitlines()[0]
    assert "accuracy,train_peak_bytes,accuracy_observed,accuracy_observed_sd,accuracy_observations" in header
    table = pd.read_parquet(write_trials(repeated, tmp_path / "trials.parquet")).set_index("trial")
    for number in several:
        assert table.accuracy_posterior[number] == beliefs.estimates[number].posterior
        assert table.accuracy[number] == repeated.trials[number].values[0], "a trial's own number stays"
    assert set(table.repeats.dropna()) == set(beliefs.first.values())
    plain = runs.results(40)
    assert not any("observed" in name or "repeats" in name for name in (*front_rows(plain)[0], *trial_rows(plain)[0]))


def test_a_model_card_names_both_numbers(repeated):
    estimates = believed(repeated.objectives, repeated.trials).estimates
    one = next(one for one in repeated.front.members if estimates[one.trial.number].count == 2)
    text, estimate = write_card(repeated, one, "knee", "base"), estimates[one.trial.number]
    assert f"accuracy (objective, posterior mean) | {estimate.posterior:.4f}" in text
    assert f"accuracy observed in 2 trainings | {estimate.mean:.4f}, standard deviation 0.0141" in text
    plain = runs.results(40)
    assert "observed" not in write_card(plain, plain.front.members[0], "knee", "base")


def test_a_person_sees_both_numbers(repeated):
    beliefs = believed(repeated.objectives, repeated.trials)
    several = {number: one for number, one in beliefs.estimates.items() if one.count == 2}
    (record,) = front_records(repeated)
    points = {point.number: point for point in record.points}
    assert set(points) == set(beliefs.estimates), "a candidate is one point"
    for number, estimate in several.items():
        assert points[number].y == estimate.posterior
        assert observed_text(estimate, repeated.objectives[0]) in points[number].hover
        assert "posterior mean" in points[number].hover
    shown = front_table(repeated.front, "accuracy", with_test=False, estimates=beliefs.estimates)
    headings = [column.header for column in shown.columns]
    assert headings[1:3] == ["accuracy, posterior mean ↑", "train_peak_bytes ↓"]
    assert headings[3] == "accuracy observed (times)"
    assert any("± 0.014 (2)" in cell for cell in shown.columns[3].cells)
    assert any("observed 2 times" in card.values[0].note for card in cards(repeated)) or not (
        set(several) & {card.number for card in cards(repeated)}
    )
    assert "observed" not in "".join(str(one.header) for one in front_table(repeated.front, "accuracy", False).columns)
