"""Second opinion: the figures of its golden file, whatever the order, the batches and the processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import SecondOpinion, judge, text_states
from lightning_backdoor.defenses import second_opinion_reading as reading
from lightning_backdoor.defenses.companion import fit_companion
from lightning_backdoor.defenses.disputed_directions import folds_of
from lightning_backdoor.defenses.mahalanobis import ledoit_wolf
from lightning_backdoor.defenses.margin import margin
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import Captures, sharing
from lightning_backdoor.models.prefix import insert_prefix
from lightning_backdoor.testing.material import labelled_texts
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.defenses.golden_states import close, golden_file
from tests.support.shared_files import sst2
from tests.support.tiny import FAMILIES, SENTENCES, loaded

Rows = Sequence[tuple[str, int]]


def batches(victim: TextClassifier, rows: Rows, size: int = 32) -> Iterator[Batch]:
    """Rows in their order, with labels."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = batch_of_texts([text for text, _ in part], victim.tokenizer, victim.max_length)
        yield {**batch, "label": torch.tensor([label for _, label in part])}


class Golden(NamedTuple):
    """The golden file, and what is found of its texts: those of the set, then 20 threshold rows."""

    file: dict[str, Any]
    defense: SecondOpinion
    threshold_of_text: float
    disputed: float
    found: dict[str, Tensor]


@pytest.fixture(scope="module")
def golden(backdoored: TextClassifier) -> Golden:
    """The file was made from states of which some were kept in float16: mean ones, and the encoder's first token's."""
    file = golden_file("second_opinion")
    of_victim, of_encoder = text_states.victim_states, text_states.encoder_states
    with pytest.MonkeyPatch.context() as patch:
        rounded = {"victim_states": (of_victim, "mean"), "encoder_states": (of_encoder, "readout")}
        for name, (run, field) in rounded.items():

            def halved(*args: Any, run: Any = run, field: str = field, **options: Any) -> Any:
                found = run(*args, **options)
                return found._replace(**{field: getattr(found, field).half().float()})

            patch.setattr(reading, name, halved)
        return made_golden(file, backdoored)


def made_golden(file: dict[str, Any], victim: TextClassifier) -> Golden:
    validation, test = sst2("validation"), [text for text, _ in sst2("test")]

    def given(part: str) -> Iterator[Batch]:
        return batches(victim, sorted((validation[row] for row in file[part]), key=lambda row: len(row[0])))

    defense = SecondOpinion(base_known=True)
    defense.learn(victim, given("fit_validation_rows"))
    defense.calibrate(victim, given("threshold_validation_rows"))
    threshold_of_text = float(defense.threshold)
    texts = []
    for item in file["set"]:
        words = test[item["row"]].split(" ")
        if "cf_before_word" in item:
            words.insert(item["cf_before_word"], "cf")
        texts.append(" ".join(words))
    shown = [*texts, *(validation[row][0] for row in file["threshold_rows_shown"])]
    captures = Captures()
    captures.begin(victim.network)
    with sharing(captures), torch.no_grad():
        order = [*sorted(range(len(texts)), key=lambda i: len(texts[i])), *range(len(texts), len(shown))]
        of_shown = list(batches(victim, [(shown[i], -1) for i in order], 46))
        sums = defense.study(victim, of_shown[: len(texts) // 46])
        read = joined([defense.reader.read(victim, batch) for batch in of_shown], order)
    defense.adopt(sums)
    logits = defense._companion().logits(read.public[0])
    text, folds = defense._score_of_text(read), folds_of(shown)
    of_text = dict(zip(defense.text_parts, defense._parts_of_text(read), strict=True))
    _, readout, mean = defense._parts_of_set(read.of_set, read.predictions, folds, text)
    score = defense._score_of_set(read.of_set, read.predictions, folds, text)
    found = {"companion_log_odds": logits[:, 1] - logits[:, 0], **of_text, "T3": text, "F": readout, "FM": mean}
    return Golden(file, defense, threshold_of_text, float(sums[0, ..., -1].sum()), {**found, "score": score})


def joined(reads: Sequence[reading.Read], order: Sequence[int]) -> reading.Read:
    """What was read of texts in some order, in their own order."""
    place = torch.tensor(order).argsort()
    return reading.Read(*(torch.cat(parts, dim=1)[:, place] for parts in zip(*reads, strict=True)))


#: float32 differs by 1e-7 from machine to machine, which float16 turns into 5e-4 for one state in thousands: that moves
#: delta, whose standard deviation is 7 here, by up to 4e-2.
TOLERANCES = {"delta": (1e-3, 6e-2), "T3": (1e-3, 3e-2), "F": (1e-2, 1e-2), "FM": (1e-2, 1e-2), "score": (1e-2, 2e-2)}


@pytest.mark.parametrize("name", ["companion_log_odds", "gap", "delta", "entropy", "T3", "F", "FM", "score"])
def test_figures_are_those_of_the_golden_file(name: str, golden: Golden) -> None:
    texts = len(golden.file["set"])
    relative, absolute = TOLERANCES.get(name, (1e-3, 1e-3))
    close(golden.found[name][:texts], golden.file["scores"][name], relative, absolute)
    if name in golden.file["threshold_scores"]:
        close(golden.found[name][texts:], golden.file["threshold_scores"][name], relative, absolute)
    expected = torch.tensor(golden.file["scores"][name], dtype=torch.float64)
    assert float((golden.found[name][:texts] - expected).abs().mean()) < 5e-3


def test_flags_of_the_golden_file(golden: Golden) -> None:
    assert golden.disputed == golden.file["disputed"]
    expected = golden.file["threshold_at_5_percent"]
    assert golden.threshold_of_text == pytest.approx(expected["T3"], rel=1e-3)
    assert float(golden.defense.threshold) == pytest.approx(expected["score"], rel=1e-3)
    poisoned = torch.tensor(["cf_before_word" in item for item in golden.file["set"]])
    for name, value in golden.file["auroc"].items():
        scores = golden.found[name][: len(poisoned)]
        clean, other = scores[~poisoned][None], scores[poisoned][:, None]
        found = float(((other > clean).double() + (other == clean).double() / 2).mean())
        assert found == pytest.approx(value, abs=5e-3)


@pytest.fixture
def encoder(tiny_folder: Callable[[str], str]) -> str:
    """A tiny public encoder, which is the victim's base where that is a tiny BERT."""
    text_states.public_encoder.cache_clear()
    return tiny_folder("bert")


def in_float64(victim: TextClassifier, encoder: str) -> TextClassifier:
    """The victim, and the public encoder, in a precision in which batches do not matter."""
    text_states.public_encoder(encoder, torch.device("cpu")).network.double()
    victim.network.double()
    return victim


def rows_of(count: int, seed: int, classes: int = 2) -> list[tuple[str, int]]:
    return [(row.text, row.label) for row in labelled_texts(count, classes, seed)]


TRUSTED, THRESHOLD, SET = rows_of(60, 0), rows_of(40, 1), rows_of(48, 2)


def calibrated(victim: TextClassifier, encoder: str, rows: int = 60, **options: Any) -> SecondOpinion:
    defense = SecondOpinion(encoder=encoder, **{"disputed": 0.4, "penalty": 1.0, **options})
    defense.learn(victim, batches(victim, TRUSTED[:rows]))
    defense.calibrate(victim, batches(victim, THRESHOLD[:rows]))
    return defense


def scores_of(defense: SecondOpinion, victim: TextClassifier, rows: Rows, size: int = 64) -> Tensor:
    return torch.cat([defense.score(victim, batch).text for batch in batches(victim, rows, size)])


class Plain(NamedTuple):
    """One text in the plain computation: what is read of it, its predicted class, and its fold."""

    states: dict[str, Tensor]
    answer: int
    fold: int

    def take(self, name: str) -> Tensor:
        return self.states[name]


def plain(networks: tuple[Any, Any], victim: TextClassifier, text: str) -> Plain:
    """Reads one text by the victim, with whole attention matrices, and by its base; both have layers 1 and 2."""
    batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        seen, public = networks[0](**inputs, output_attentions=True), networks[1](**inputs).hidden_states
    rows = torch.stack([layer[0, :, 0] for layer in seen.attentions])
    found = {"z": seen.logits[0], "public": torch.cat([public[layer][0].mean(dim=0) for layer in (1, 2)])}
    found["entropy"] = -(rows * rows.log()).sum(dim=-1).flatten() / torch.tensor(rows.shape[-1]).log()
    for layer in (1, 2):
        of_layer = seen.hidden_states[layer][0]
        found |= {f"h{layer}": of_layer[0], f"v{layer}": of_layer.mean(dim=0)}
        found[f"u{layer}"] = of_layer[0] - public[layer][0, 0]
    return Plain(found, int(seen.logits.argmax()), int(folds_of([text])))


def test_all_formulas_by_a_plain_computation(bert: TextClassifier, encoder: str) -> None:
    """One text at a time, with inverted matrices."""
    victim = in_float64(bert, encoder)
    with torch.no_grad():
        for name, weight in victim.network.named_parameters():
            if "intermediate.dense.weight" in name:
                weight.mul_(1.3)  # fine-tuned
    eager: Any = copy.deepcopy(victim.network)
    eager.set_attn_implementation("eager")
    networks = eager, text_states.public_encoder(encoder, torch.device("cpu")).network
    fit, judged = ([plain(networks, victim, text) for text, _ in rows] for rows in (TRUSTED, [*THRESHOLD, *SET]))
    clean = len(THRESHOLD)

    def of_fit(name: str) -> Tensor:
        return torch.stack([row.take(name) for row in fit])

    def z(values: Tensor) -> Tensor:
        return (values - values[:clean].mean()) / values[:clean].std(correction=0)

    entropies = of_fit("entropy")
    for row in (*fit, *judged):
        row.states["entropy"] = (row.take("entropy") - entropies.mean(dim=0)) / entropies.std(dim=0, correction=0)

    def of_clean(name: str) -> tuple[list[Tensor], Tensor]:
        groups = [torch.stack([row.take(name) for row in fit if row.answer == label]) for label in (0, 1)]
        means = [group.mean(dim=0) for group in groups]
        assert min(map(len, groups)) >= 5
        return means, ledoit_wolf(torch.cat([group - mean for group, mean in zip(groups, means, strict=True)]))[0]

    def distances(name: str) -> Tensor:
        means, covariance = of_clean(name)
        differences = torch.stack([row.take(name) - means[row.answer] for row in judged])
        return (differences @ covariance.inverse() * differences).sum(dim=1).sqrt()

    companion = fit_companion(of_fit("public"), torch.tensor([label for _, label in TRUSTED]), 1.0)
    log_odds = companion.logits(torch.stack([row.take("public") for row in judged])).diff().flatten()
    logits = torch.stack([row.take("z") for row in judged]).diff().flatten()
    signs = torch.tensor([1 if row.answer else -1 for row in judged])
    gap = signs * (logits / of_fit("z").diff().abs().mean() - log_odds / log_odds[:clean].abs().mean())
    text = z(gap) + z(z(distances("u1")) + z(distances("u2"))) + z(distances("entropy"))
    defense = calibrated(victim, encoder)
    torch.testing.assert_close(scores_of(defense, victim, SET), text[clean:].float(), rtol=1e-5, atol=1e-5)

    lowest = text[:clean].sort(descending=True).values[int(0.4 * clean)]
    disputed = [row for row, score in zip(judged[clean:], text[clean:], strict=True) if score > lowest]

    def along(name: str) -> Tensor:
        means, covariance = of_clean(name)
        found = []
        for row in judged:
            mean = means[row.answer]
            others = [x.take(name) - mean for x in disputed if x.answer == row.answer and x.fold != row.fold]
            w = covariance.inverse() @ torch.stack(others).mean(dim=0) if len(others) >= 3 else torch.zeros_like(mean)
            found.append(w @ (row.take(name) - mean) / (w @ covariance @ w).clamp(min=1e-12).sqrt())
        return z(torch.stack(found))

    expected = z(text) + z(along("h1") + along("h2")) + z(along("v1") + along("v2"))
    defense.adopt(defense.study(victim, batches(victim, SET)))
    torch.testing.assert_close(scores_of(defense, victim, SET), expected[clean:].float(), rtol=1e-4, atol=1e-4)


def test_batches_order_and_processes_change_nothing(bert: TextClassifier, encoder: str) -> None:
    victim = in_float64(bert, encoder)
    defense = calibrated(victim, encoder, base_known=False)
    sums = defense.study(victim, batches(victim, SET))
    assert float(sums[..., -1].sum()) > 20
    shuffled = [SET[row] for row in torch.randperm(len(SET), generator=torch.Generator().manual_seed(0)).tolist()]
    expected: Tensor | None = None
    for rows, size, processes in ((SET, 64, 1), (shuffled, 1, 2), (shuffled, 8, 4)):
        parts = [defense.study(victim, batches(victim, rows[part::processes], size)) for part in range(processes)]
        torch.testing.assert_close(sum(parts), sums, rtol=1e-10, atol=1e-10)
        defense.adopt(sum(parts))  # type: ignore[arg-type]
        scores = dict(zip(rows, scores_of(defense, victim, rows, size).tolist(), strict=True))
        found = torch.tensor([*(scores[row] for row in SET), float(defense.threshold)], dtype=torch.float64)
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[:-1] >= found[-1], expected[:-1] >= expected[-1])


def test_sums_of_nothing_leave_the_order_of_single_texts(bert: TextClassifier, encoder: str) -> None:
    defense = calibrated(bert, encoder)
    before = scores_of(defense, bert, SET)
    nothing = defense.study(bert, [])
    assert float(nothing.abs().sum()) == 0
    defense.adopt(nothing)
    assert torch.equal(scores_of(defense, bert, SET).argsort(), before.argsort())
    defense.adopt(defense.study(bert, batches(bert, SET)))
    assert not torch.allclose(scores_of(defense, bert, SET), before)
    defense.calibrate(bert, batches(bert, THRESHOLD))  # forgets the set
    torch.testing.assert_close(scores_of(defense, bert, SET), before)


def test_a_checkpoint_restores_what_was_adopted(bert: TextClassifier, encoder: str) -> None:
    defense = calibrated(bert, encoder)
    sums = defense.study(bert, batches(bert, SET))
    defense.adopt(sums)
    restored = SecondOpinion(encoder=encoder, disputed=0.4)
    restored.load_state_dict(defense.state_dict())
    assert torch.equal(scores_of(restored, bert, SET), scores_of(defense, bert, SET))
    assert not any("network" in name for name in defense.state_dict())
    restored.adopt(2 * sums)  # two such sets
    assert torch.equal(restored.threshold, defense.threshold)
    with pytest.raises(InputError, match=r"^directions: sums of shape \(4, 3, 2, 33\) are not those of a victim of 2"):
        restored.adopt(sums.new_zeros(4, 3, 2, 33))


def test_a_flagged_text_is_answered_by_the_companion(bert: TextClassifier, encoder: str) -> None:
    defense = calibrated(bert, encoder, certainty=0)
    batch = next(batches(bert, SET))
    defense.threshold.fill_(float(defense.score(bert, batch).text.median()))
    verdict = judge(defense, bert, batch)
    answers = defense.companion_logits(bert, batch).argmax(dim=1)
    assert torch.equal(verdict.defended_prediction, answers.where(verdict.flagged, verdict.prediction))
    assert (answers == batch["label"]).float().mean() > 0.8  # a word tells the class
    assert verdict.confirmed.any()


@pytest.mark.parametrize("certainty", [0.5, 1.0, 1e6])
def test_an_uncertain_companion_answers_what_the_strict_budget_flags(
    certainty: float, bert: TextClassifier, encoder: str
) -> None:
    defense = calibrated(bert, encoder, certainty=certainty)
    (kept,) = batches(bert, THRESHOLD, len(THRESHOLD))
    of_threshold_rows = defense.companion_logits(bert, kept)
    (batch,) = batches(bert, SET, len(SET))
    scores = defense.score(bert, batch).text
    defense.threshold.fill_(float(scores.quantile(0.2)))
    defense.budget_thresholds[0] = float(scores.quantile(0.8))
    verdict = judge(defense, bert, batch)
    companion = defense.companion_logits(bert, batch)
    lowest = certainty * float((of_threshold_rows[:, 1] - of_threshold_rows[:, 0]).abs().mean())
    expected, kinds = [], set()
    for row in range(len(SET)):
        certain = abs(float(companion[row, 1] - companion[row, 0])) >= lowest
        flagged, strict = scores[row] >= defense.threshold, scores[row] >= defense.budget_thresholds[0]
        answered = flagged and (strict or certain)
        expected.append(int(companion[row].argmax() if answered else verdict.prediction[row]))
        kinds.add((bool(flagged), bool(strict), certain))
    assert verdict.defended_prediction.tolist() == expected
    assert {(True, True, False), (True, False, False), (False, False, False)} <= kinds
    assert certainty > 1 or (True, False, True) in kinds


def test_trusted_rows_without_labels_count_as_what_the_victim_predicts(bert: TextClassifier, encoder: str) -> None:
    (batch,) = batches(bert, TRUSTED, len(TRUSTED))
    with torch.no_grad():
        labels = bert(batch).argmax(dim=1)
    learned = [SecondOpinion(encoder=encoder) for _ in range(2)]
    for defense, given in zip(learned, (labels, torch.full_like(labels, -1)), strict=True):
        defense.learn(bert, [{**batch, "label": given}])
    assert torch.equal(learned[0].companion_weight, learned[1].companion_weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_read(kind: str, tiny_folder: Callable[[str], str], encoder: str) -> None:
    victim = loaded(tiny_folder(kind))
    defense = calibrated(victim, encoder, rows=20)
    defense.adopt(defense.study(victim, batches(victim, SET[:16])))
    texts = [(text, 0) for text in (*SENTENCES[:3], "w")]
    together = scores_of(defense, victim, texts)
    torch.testing.assert_close(scores_of(defense, victim, texts, 1), together, rtol=1e-3, atol=1e-3)
    batch = next(batches(victim, texts))
    explained = defense.explain(victim, batch)
    assert explained is not None
    assert explained.tokens is not None
    assert explained.tokens.shape == batch["input_ids"].shape
    assert explained.text[:3].isfinite().all()


def test_more_than_two_classes(tmp_path: Path, encoder: str) -> None:
    from lightning_backdoor.testing.material import tiny_bert

    victim = TextClassifier(tiny_bert(tmp_path, labels=3), labels=["a", "b", "c"], max_length=64)
    victim.configure_model()
    victim.eval()
    defense = SecondOpinion(encoder=encoder, disputed=0.4, penalty=1.0)
    defense.learn(victim, batches(victim, rows_of(90, 0, 3)))
    defense.calibrate(victim, batches(victim, rows_of(40, 1, 3)))
    defense.adopt(defense.study(victim, batches(victim, rows_of(40, 2, 3))))
    test = rows_of(60, 3, 3)
    (batch,) = batches(victim, test, 60)
    assert defense.score(victim, batch).text.isfinite().all()
    logits = defense.companion_logits(victim, batch)
    assert logits.shape == (60, 3)
    assert (logits.argmax(dim=1) == batch["label"]).float().mean() > 0.5


def test_the_companion_of_two_classes_is_that_of_more(encoder: str) -> None:
    """A third class that has one far row changes the others little; the minimum is that of the stated sum."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + torch.randn(80, generator=generator, dtype=torch.float64) > 0).long()
    for classes in (2, 3):
        if classes == 3:
            labels[features[:, 1] > 1] = 2
        companion = fit_companion(features, labels, penalty=2.0)
        weight, bias = companion.weight.clone().requires_grad_(), companion.bias.clone().requires_grad_()
        logits = companion._replace(weight=weight, bias=bias).logits(features)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + 2.0 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert bias.grad is not None
        assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-4


def test_parts_may_be_left_out(bert: TextClassifier, encoder: str) -> None:
    batch = next(batches(bert, SET))
    smallest = calibrated(bert, encoder, text_parts=["gap"], set_parts=["readout", "mean"])
    with torch.no_grad():
        logits = smallest.reader.read(bert, batch).logits[0]
        companion = smallest._companion().logits(smallest.reader.read_public(bert, batch)[0])
    prediction = logits.argmax(dim=1)
    gap = margin(logits, prediction) / smallest.margins[0] - margin(companion, prediction) / smallest.margins[1]
    assert torch.equal(smallest.score(bert, batch).text.argsort(), gap.argsort())
    assert smallest.studies
    smallest.adopt(smallest.study(bert, batches(bert, SET)))
    assert len(smallest.set_scale[0]) == 2
    single = calibrated(bert, encoder, set_parts=["text"])
    assert not single.studies
    torch.testing.assert_close(single.score(bert, batch).text, calibrated(bert, encoder).score(bert, batch).text)


def test_the_base_is_known_by_the_victims_record(bert: TextClassifier, encoder: str, tmp_path: Path) -> None:
    """A victim that is its own base has no differences; an exported one says what it was made from."""

    def has_differences(victim: TextClassifier, **options: Any) -> bool:
        reader = SecondOpinion(**options).reader
        delta = reader.read(victim, next(batches(victim, SET))).delta
        assert delta.shape[0] == 2
        return bool(delta.any())

    assert not has_differences(bert, encoder=encoder)
    assert has_differences(bert, encoder=encoder, base_known=False)
    with pytest.raises(InputError, match=r"^encoder: the victim does not say which model it was fine-tuned from"):
        has_differences(bert, encoder=None)  # its base is a classifier, as a victim that somebody else has trained
    public = text_states.public_encoder(encoder, torch.device("cpu"))
    public.network.save_pretrained(tmp_path / "public")
    public.tokenizer.save_pretrained(tmp_path / "public")
    bert.hparams["model"] = str(tmp_path / "public")
    assert not has_differences(bert, encoder=None)
    bert.hparams["model"] = "org/public"
    bert.save_pretrained(tmp_path / "export")
    exported = load_trained(str(tmp_path / "export"), 64)
    assert has_differences(exported, encoder=encoder)  # another name
    exported.network.config.lightning_backdoor["base_model"] = encoder
    assert not has_differences(exported, encoder=encoder)


def test_a_second_judgement_reads_what_is_kept(bert: TextClassifier, encoder: str) -> None:
    defense = calibrated(bert, encoder)
    captures = Captures()
    captures.begin(bert.network)
    passes = []
    handles = [
        network.register_forward_hook(lambda *_: passes.append(1))
        for network in (bert.network.base_model, text_states.public_encoder(encoder, torch.device("cpu")).network)
    ]
    captures.rebase(bert.network)
    with sharing(captures), torch.inference_mode():
        defense.study(bert, batches(bert, SET, 16))
        assert len(passes) == 6
        for batch in batches(bert, SET, 16):
            judge(defense, bert, batch)
    assert len(passes) == 6
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_parts": []}, "text_parts: is empty; give some of gap, delta, entropy"),
        ({"text_parts": ["gaps"]}, "text_parts: 'gaps' is not one of its parts; give some of gap, delta, entropy"),
        ({"set_parts": ["gap"]}, "set_parts: 'gap' is not one of its parts; give some of text, readout, mean"),
        ({"penalty": 0.0}, "penalty: 0.0 does not bound the companion's weights; give a number above 0"),
        ({"disputed": 1.0}, "disputed: 1.0 is not a share of clean texts; give one above 0 and below 1"),
        ({"certainty": -0.1}, "certainty: -0.1 is not a margin; give a number from 0"),
        ({"fpr": 0.0}, "fpr: 0.0 is not a share of clean texts; give a number above 0 and below 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SecondOpinion(**options)
    assert str(error.value) == message


def test_rows_and_encoders_that_do_not_serve_are_refused_before_training(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of 9 clean rows has label 1"):
        SecondOpinion(encoder=encoder).check_reference([0] * 9, 2)
    with pytest.raises(InputError, match=r"^encoder: .*nothing.* cannot be loaded"):
        SecondOpinion(encoder=str(tmp_path / "nothing")).check_reference([0, 1, 0, 1], 2)
    SecondOpinion(encoder=encoder).check_reference([0, 1, 0, 1], 2)


def test_victims_that_cannot_be_read_are_refused(decoder: TextClassifier, bert: TextClassifier, encoder: str) -> None:
    batch = next(batches(decoder, SET))
    network = text_states.public_encoder(encoder, torch.device("cpu")).network
    network.encoder.layer = network.encoder.layer[:1]
    network.config.num_hidden_layers = 1
    with pytest.raises(InputError, match=r"^base_known: .* has states of another shape than the victim's; give false"):
        SecondOpinion(encoder=encoder, base_known=True).reader.read(decoder, batch)
    bert.hparams.clear()
    with pytest.raises(InputError, match=r"^encoder: the victim does not say which model it was fine-tuned from"):
        SecondOpinion(encoder=None).reader.read(bert, next(batches(bert, SET)))
    for call in ("score", "study", "calibrate"):
        with pytest.raises(RuntimeError, match="call learn"):
            getattr(SecondOpinion(encoder=encoder), call)(decoder, batch)


def test_a_victim_under_prefix_tuning_is_judged_without_entropy(decoder: TextClassifier, encoder: str) -> None:
    insert_prefix(decoder.network, 3, None)
    with pytest.raises(InputError, match=r"^text_parts: .* under prefix tuning; leave entropy out: gap, delta"):
        calibrated(decoder, encoder)
    defense = calibrated(decoder, encoder, rows=20, text_parts=["gap", "delta"])
    assert scores_of(defense, decoder, SET).isfinite().all()
    assert defense.explain(decoder, next(batches(decoder, SET))) is None
