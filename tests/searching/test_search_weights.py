"""The search on models: two tasks that a mixture does best, every kind of head, and the model as it was afterwards."""

import dataclasses

import models
import pytest
import torch
import toy

import lora_hub
from lora_hub.errors import CompatibilityError, NotFoundError, UsageError
from lora_hub.searching.examples import Completion, Labelled
from lora_hub.searching.loss import loss_on
from lora_hub.searching.result import EQUAL, FOUND, NONE, alone
from lora_hub.searching.tokens import batches, rows_of


def search(model, adapters, examples, tokenizer=None, **options):
    return lora_hub.search_weights(model, tokenizer or toy.WordTokenizer(), adapters, examples, **options)


@pytest.fixture(scope="module")
def found(adapters, tmp_path_factory):
    """What a search with default options finds."""
    path = toy.jsonl(tmp_path_factory.mktemp("examples") / "e.jsonl", toy.pairs("a") + toy.pairs("b"))
    return search(toy.model(), adapters, path)


def test_a_mixture_of_two_tasks_is_found(found):
    """On examples of two tasks, the found weights beat equal weights and each adapter alone by far."""
    others = [m.search for m in found.losses if m.point != FOUND]

    assert found.at(FOUND).search < 0.75 * min(others)
    assert found.weights["one"] > 0.3
    assert found.weights["two"] > 0.3
    assert abs(found.weights["neither"]) < 0.2


def test_the_hold_out_is_measured_and_not_searched(found):
    """A fifth is held out, and its loss is reported of whatever is compared."""
    assert (found.examples, found.holdout) == (16, 4)
    assert {m.point for m in found.losses} == {EQUAL, NONE, FOUND, *map(alone, ("one", "two", "neither"))}
    assert all(m.holdout is not None and m.holdout != m.search for m in found.losses)
    assert found.at(FOUND).holdout < found.at(EQUAL).holdout


def test_same_seed_same_result(adapters, examples, found):
    """Another model object, another run: the same weights, losses and trace."""
    assert search(toy.model(), adapters, examples) == found


def test_another_seed_holds_out_other_examples(adapters, examples, model, found):
    """The seed chooses the hold-out."""
    other = search(model, adapters, examples, seed=1, budget=1)

    assert other.at(NONE).holdout != found.at(NONE).holdout
    assert other.digest == found.digest


def test_the_loss_is_that_of_the_composed_adapter(adapters, examples, model, found):
    """What the search says of its weights is what the model gives under that sum, on all examples together."""
    for name, source in adapters.items():
        lora_hub.apply_adapter(model, source, name=name)
    ids = [toy.WordTokenizer()(p + c)["input_ids"] for p, c in toy.pairs("a") + toy.pairs("b")]
    with lora_hub.use(model, found.weights):
        logits = models.logits(model, torch.tensor(ids))[:, -2].double()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([row[-1] for row in ids]))
    measured = found.at(FOUND)

    assert (16 * measured.search + 4 * measured.holdout) / 20 == pytest.approx(expected.item(), rel=1e-5)


def test_the_model_is_as_it_was(adapters, examples, model):
    """Candidates are taken off, modes come back, and what was on the model is there and active."""
    own = lora_hub.apply_adapter(model, adapters["one"], name="own")
    model.train()
    model.model.layers[0].eval()
    before, modes = models.state(model), [m.training for m in model.modules()]
    outputs = models.logits(model)
    search(model, adapters, examples, budget=2)

    assert models.same_bits(models.state(model), before)
    assert [m.training for m in model.modules()] == modes
    assert list(lora_hub.adapters(model)) == ["own"]
    assert own.active
    assert torch.equal(models.logits(model), outputs)


def test_what_is_on_the_model_does_not_count(adapters, examples, model, found):
    """Adapters that are active outside are off in the search."""
    lora_hub.apply_adapter(model, adapters["neither"], name="own")

    assert search(model, adapters, examples, budget=1).trace[:5] == found.trace[:5]


def test_after_an_error_the_model_is_as_it_was(adapters, examples, model, tmp_path):
    """A candidate that does not fit is refused, and those before it are taken off."""
    other = lora_hub.add_adapter(models.llama(num_hidden_layers=3), "x")
    lora_hub.save_adapter(other, tmp_path / "other")
    with pytest.raises(CompatibilityError, match="layers"):
        search(model, {**adapters, "other": tmp_path / "other"}, examples)

    assert not lora_hub.adapters(model)


def test_a_name_that_is_taken_is_refused(adapters, examples, model):
    """The model's own adapter of that name is not mixed up with the candidate."""
    lora_hub.apply_adapter(model, adapters["two"], name="one")
    with pytest.raises(UsageError, match="has an adapter `one` already"):
        search(model, adapters, examples)

    assert list(lora_hub.adapters(model)) == ["one"]


def test_only_the_completion_is_judged(model):
    """The loss of a completion is -log p of its tokens, each after all before it, and padding changes nothing."""
    examples = [
        Completion(line=1, prompt="w1 w2", completion=" w3 w4 w5"), Completion(line=2, prompt="w7", completion=" w8")
    ]  # fmt: skip
    each = []
    for example, count in zip(examples, (3, 1), strict=True):
        ids = torch.tensor([toy.WordTokenizer()(example.prompt + example.completion)["input_ids"]])
        log_p = models.logits(model, ids)[0].log_softmax(-1)
        each.append(-sum(log_p[-count - 1 + i, ids[0, -count + i]].item() for i in range(count)) / count)

    assert loss_on(model, toy.WordTokenizer(), tuple(examples))() == pytest.approx(sum(each) / 2, rel=1e-5)


class Merging(toy.WordTokenizer):
    """A tokenizer for which `w1` and `+` are one token when they touch."""

    def __call__(self, text):
        """Return the ids, as the other one does."""
        return super().__call__(text.replace("w1+", "w9"))


def test_a_token_over_the_border_is_judged():
    """Prompt and completion are one text; what differs from the prompt's own tokens belongs to the completion."""
    example = Completion(line=1, prompt="w3 w1", completion="+ w4")
    (row,) = rows_of((example,), Merging(), limit=9, classes={}, count=None)

    assert (row.ids, row.target) == ((1, 6, 12, 7), 2)


@pytest.mark.parametrize(
    ("example", "tokenizer", "said"),
    [
        (Completion(line=3, prompt="w1 " * 40, completion="w2"), toy.WordTokenizer(), "line 3 has 42 tokens"),
        (Completion(line=3, prompt="w1", completion=" "), toy.WordTokenizer(), "line 3: the completion adds no token"),
        (Completion(line=3, prompt="", completion="w1"), toy.WordTokenizer(()), "line 3: nothing stands before"),
    ],
)
def test_an_example_that_cannot_be_judged_is_refused(model, example, tokenizer, said):
    """Too long, without a token of its own, without anything before it: refused with the line, never cut off."""
    with pytest.raises(UsageError, match=said):
        loss_on(model, tokenizer, (example,))


def labelled(*labels):
    return tuple(Labelled(line=i, text=f"w{i} w{2 * i}", label=label) for i, label in enumerate(labels, start=1))


@pytest.mark.parametrize("build", [models.bert, models.llama_classifier])
def test_the_loss_of_a_classifier(build):
    """It is -log p of the class, by number or by name, however the texts are padded together."""
    model = build()
    examples = (*labelled(0, 2, "LABEL_1"), Labelled(line=9, text="w1 w2 w3 w4 w5", label=1))
    logits = [models.logits(model, torch.tensor([toy.WordTokenizer()(e.text)["input_ids"]]))[0] for e in examples]
    each = [-one.log_softmax(-1)[label] for one, label in zip(logits, (0, 2, 1, 1), strict=True)]

    assert loss_on(model, toy.WordTokenizer(), examples)() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_a_classifier_without_padding_runs_row_by_row():
    """A decoder that has no padding token cannot find the last token of a padded row."""
    model = models.llama_classifier()
    expected = loss_on(model, toy.WordTokenizer(), labelled(0, 1, 2))()
    model.config.pad_token_id = None

    assert loss_on(model, toy.WordTokenizer(), labelled(0, 1, 2))() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("label", "said"), [(3, "no class 3"), ("good", "no class 'good'")])
def test_a_class_that_the_model_lacks_is_refused(label, said):
    """The label must be one of the model's; the line is named."""
    with pytest.raises(UsageError, match=f"line 2: the model has {said}"):
        loss_on(models.bert(), toy.WordTokenizer(), labelled(0, label))


def test_examples_for_another_kind_of_model_are_refused(model):
    """Completions on a classifier, classes on a language model."""
    with pytest.raises(CompatibilityError, match="completions"):
        loss_on(models.bert(), toy.WordTokenizer(), (Completion(line=1, prompt="w1", completion=" w2"),))()
    with pytest.raises(CompatibilityError, match="class"):
        loss_on(model, toy.WordTokenizer(), labelled(0))()


@pytest.mark.parametrize("options", [{"is_encoder_decoder": True}, {"problem_type": "regression"}])
def test_models_whose_loss_is_another_one_are_refused(options):
    """Nothing is computed that would mean something else."""
    model = models.bert()
    for name, value in options.items():
        setattr(model.config, name, value)
    with pytest.raises(CompatibilityError, match="search_by_objective"):
        loss_on(model, toy.WordTokenizer(), labelled(0))


def head(seed):
    """An adapter of the tiny classifier that also replaces its head, as a saved directory."""

    def save(directory):
        model = models.bert()
        handle = lora_hub.add_adapter(model, "x", modules_to_save=("classifier",))
        models.randomise(models.adapter_parameters(model), seed=seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "classifier" in name and parameter.requires_grad:
                    parameter.copy_(torch.full_like(parameter, 0.1 * seed))
        lora_hub.save_adapter(handle, directory)
        return directory

    return save


def test_heads_that_differ_are_refused(tmp_path):
    """The sum of deltas says nothing of heads, so two heads cannot be mixed."""
    sources = {"a": head(3)(tmp_path / "a"), "b": head(4)(tmp_path / "b")}
    with pytest.raises(CompatibilityError, match="`a` and `b` replace `classifier`"):
        search(models.bert(), sources, labelled(0, 1))


def test_a_common_head_runs_in_every_mixture(tmp_path):
    """Where all agree on a head it is on, also with no adapter: a random head's loss would say nothing."""
    source = head(3)(tmp_path / "a")
    model = models.bert()
    with torch.no_grad():
        model.classifier.weight.fill_(0.3)
        model.classifier.bias.fill_(0.3)
    expected = loss_on(model, toy.WordTokenizer(), labelled(0, 1))()
    found = search(models.bert(), {"a": source, "b": source}, labelled(0, 1), budget=1)

    assert found.at(NONE).search == pytest.approx(expected, rel=1e-6)


def test_batches_hold_each_row_once():
    """Rows of like length run together, a long one alone, and none is lost."""
    examples = tuple(
        Completion(line=n, prompt="w1 " * (n % 7 * 40), completion="w2 " * (1 + n * 3)) for n in range(1, 60)
    )
    rows = rows_of(examples, toy.WordTokenizer(), limit=10_000, classes={}, count=None)
    cut = list(batches(rows))

    assert sorted(row.ids for batch in cut for row in batch) == sorted(row.ids for row in rows)
    assert all(len(batch) * max(len(r.ids) for r in batch) <= 1024 or len(batch) == 1 for batch in cut)


def test_a_base_is_loaded_by_name(base, adapters, examples, found):
    """From a directory, the search gives what it gives with the model in hand."""
    sources = {name: str(path) for name, path in adapters.items()}
    other = lora_hub.search_on_base(str(base), sources, examples, budget=1)

    assert other.trace[0].loss == pytest.approx(found.trace[0].loss, rel=1e-5)


def test_a_classifier_is_loaded_by_name(classifier, tmp_path):
    """Labelled texts load the base as a classifier; one whose head the adapters bring may lack it."""
    path = toy.jsonl(tmp_path / "e.jsonl", [{"text": "w1 w2", "label": 2}])
    source = str(head(3)(tmp_path / "a"))
    backbone = toy.save_base(models.bert().bert, tmp_path / "backbone")
    losses = {
        lora_hub.search_on_base(str(directory), {"a": source}, path, budget=1).at(alone("a")).search
        for directory in (classifier, backbone)
    }

    assert len(losses) == 1


def test_a_base_that_would_be_random_is_refused(tmp_path):
    """A head that neither base nor adapter has is not drawn at random."""
    backbone = toy.save_base(models.bert().bert, tmp_path / "backbone")
    handle = lora_hub.add_adapter(models.bert(), "x")
    lora_hub.save_adapter(handle, tmp_path / "a")
    path = toy.jsonl(tmp_path / "e.jsonl", [{"text": "w1 w2", "label": 1}])
    with pytest.raises(CompatibilityError, match="has no `classifier"):
        lora_hub.search_on_base(str(backbone), {"a": str(tmp_path / "a")}, path)


def test_a_base_of_the_wrong_kind_is_refused(classifier, adapters, examples):
    """A classifier completes nothing."""
    with pytest.raises(CompatibilityError, match="BertForSequenceClassification"):
        lora_hub.search_on_base(str(classifier), {"one": str(adapters["one"])}, examples)


def test_a_base_that_is_not_there_is_not_found(adapters, examples, tmp_path):
    """A missing directory, a directory without a model, and a name that no cache has."""
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "none"), str(tmp_path / "empty"), "org/none"):
        with pytest.raises((NotFoundError, CompatibilityError), match=name):
            lora_hub.search_on_base(name, {"one": str(adapters["one"])}, examples)


def test_code_of_a_base_is_never_run(base, adapters, examples, tmp_path):
    """A config that names code of its own is refused by transformers, and nothing of it is imported."""
    import json
    import shutil

    evil = tmp_path / "evil"
    shutil.copytree(base, evil)
    config = json.loads((evil / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (evil / "config.json").write_text(json.dumps(config))
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises((CompatibilityError, NotFoundError)):
        lora_hub.search_on_base(str(evil), {"one": str(adapters["one"])}, examples)

    assert not (tmp_path / "ran").exists()


def test_the_report_is_json(found):
    """The document holds weights, losses and the whole trace, and nothing that JSON lacks."""
    import json

    document = json.loads(json.dumps(found.to_document(), allow_nan=False))

    assert document["weights"] == dict(found.weights)
    assert len(document["trace"]) == 45
    assert document["examples"]["sha256"] == found.digest
    assert dataclasses.replace(found, seed=5).to_document()["optimiser"]["seed"] == 5
