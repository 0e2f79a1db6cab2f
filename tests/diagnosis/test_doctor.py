"""The doctor: a healthy model has no finding, and each fault is found when it is planted in a tiny
one.
"""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_decoders
import torch
import transformers
from safetensors.torch import load_file, save_file
from shell import run_command
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from sparse_ir import cli
from sparse_ir.commands import doctor
from sparse_ir.diagnosis import examination
from sparse_ir.diagnosis.checks import RULES, Measured, Rule, judge
from sparse_ir.diagnosis.measurements import MEASUREMENTS
from sparse_ir.errors import ConfigError, DataError, ModelError
from sparse_ir.models import adapters, decoder_settings
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.encoder import Encoder

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
WIDTH = 128
PROBES = [text for pair in examination.read_probes() for text in pair.values()]
SHIFT = 0.7  # a token's own logit is above it, and those of nearly all others below


def make_tokenizer(masked=False, side="right"):
    """Words of the probes as they stand, so that unlike texts are unlike; BOS before a text, or a
    frame around it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.train_from_iterator(
        PROBES,
        trainers.BpeTrainer(
            vocab_size=1600,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    end = " </s>" if masked else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", pair=f"<s> $A{end} $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        padding_side=side,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(folder, config, owner, change=lambda model, owner: None, masked=False):
    """A network with small random layers: a state is near to its token's vector, which is its
    output row, and whose length is the token's IDF in the probes."""
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        weight = model.get_input_embeddings().weight
        present = torch.zeros(len(PROBES), len(weight))
        for row, ids in zip(
            present, owner(PROBES, add_special_tokens=False).input_ids, strict=True
        ):
            row[ids] = 1.0
        idf = torch.log((len(PROBES) + 1) / (present.sum(0) + 0.5))
        weight.copy_(
            torch.nn.functional.normalize(weight, dim=1) * 0.25 * (idf / idf.max())[:, None]
        )
        weight[: len(SPECIAL)] = 0.0
        change(model, owner)
    model.save_pretrained(folder)
    owner.save_pretrained(folder)
    return folder


def make_decoder(
    folder,
    change=lambda model, owner: None,
    *,
    family="llama",
    side="right",
    settings=None,
    **options,
):
    owner = make_tokenizer(side=side)
    options = (
        {"n_embd": WIDTH, "n_positions": 512, "initializer_range": 0.004, "resid_pdrop": 0.0}
        | options
        if family == "gpt2"
        else {
            "hidden_size": WIDTH,
            "max_position_embeddings": 512,
            "initializer_range": 0.004,
            "tie_word_embeddings": True,
            "head_dim": 32,
        }
        | options
    )
    save(folder, tiny_decoders.make_config(family, len(owner), **options), owner, change)
    decoder_settings.write_decoder_settings(folder, settings or DecoderSettings(logit_shift=SHIFT))
    return folder


def make_masked(folder, change=lambda model, owner: None, kind="Bert", **options):
    owner = make_tokenizer(masked=True)
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": len(owner),
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "initializer_range": 0.004,
            "pad_token_id": 0,
            **options,
        }
    )

    def pass_through(model, owner):
        """What the layer before the output layer gets, it passes."""
        head = model.cls.predictions
        head.transform.dense.weight.copy_(torch.eye(WIDTH))
        head.transform.transform_act_fn = torch.nn.Identity()
        head.decoder.bias.fill_(-SHIFT)
        change(model, owner)

    return save(folder, config, owner, pass_through, masked=True)


def findings(folder, **options):
    report = examination.examine(str(folder), **options)
    assert report["healthy"] == (report["faults"] == 0)
    assert report["faults"] + report["warnings"] == len(report["findings"])
    assert all(found["evidence"] and found["remedy"] for found in report["findings"])
    return {found["name"]: found for found in report["findings"]}


def severities(folder, **options):
    return {name: found["severity"] for name, found in findings(folder, **options).items()}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    torch.set_num_threads(1)
    return make_decoder(tmp_path_factory.mktemp("doctor") / "healthy")


@pytest.fixture
def copy(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "copy")


# --- healthy ---


@pytest.mark.parametrize("mode", ["causal", "echo", "bidirectional"])
def test_a_healthy_decoder_has_no_finding(mode, healthy):
    report = examination.examine(
        str(healthy), decoder=DecoderSettings(mode=mode, logit_shift=SHIFT, max_length=512)
    )
    assert report["findings"] == [] and report["healthy"] and report["kind"] == f"decoder, {mode}"
    assert list(report["measured"]) == ["numbers", *MEASUREMENTS]
    assert set(report["measured"]) == {rule.check for rule in RULES}
    assert report["measured"]["head"] == {"tied": True, "own_tokens": pytest.approx(1.0, abs=0.05)}


def test_a_healthy_masked_language_model_has_no_finding(tmp_path):
    report = examination.examine(str(make_masked(tmp_path / "m")))
    assert report["findings"] == [] and report["kind"] == "masked language model"


# --- planted ---


def noise(owner, count=40):
    """Ids of tokens that no probe contains."""
    used = {token for ids in owner(PROBES).input_ids for token in ids}
    return [token for token in range(len(SPECIAL), len(owner)) if token not in used][:count]


def set_tensor(folder, name, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, copy):
    set_tensor(copy, "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor[3, 5].fill_(value))
    report = examination.examine(str(copy))
    (found,) = report["findings"]
    assert (found["name"], found["severity"]) == ("numbers", "fault")
    assert found["evidence"]["not_finite"] == 1
    assert found["evidence"]["first"] == "model.layers.1.mlp.up_proj.weight"
    assert list(report["measured"]) == ["numbers"]


def test_an_adapter_that_changes_nothing(healthy, tmp_path):
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(healthy)
    with adapters.quiet_peft():
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    adapters.save_adapter(
        adapted,
        tmp_path / "adapter",
        base=str(healthy),
        settings=DecoderSettings(logit_shift=SHIFT),
        hf_tokenizer=transformers.AutoTokenizer.from_pretrained(healthy),
    )
    found = findings(tmp_path / "adapter")
    assert set(found) == {"numbers"} and found["numbers"]["severity"] == "warning"
    assert found["numbers"]["evidence"]["zero_matrices"] == 14  # seven linear layers, twice
    assert "lora_B" in found["numbers"]["evidence"]["first"]


def test_an_output_layer_that_lost_its_tie(tmp_path):
    found = findings(make_decoder(tmp_path / "m", tie_word_embeddings=False))
    assert found["head"]["severity"] == "fault" and found["retrieval"]["severity"] == "fault"
    assert (
        0.4
        < found["head"]["evidence"]["own_tokens"]
        < 0.6
        < found["head"]["evidence"]["own_tokens_if_tied"]
    )
    assert "tie it to the word embeddings again" in found["head"]["remedy"]


def test_an_output_layer_that_is_merely_random_cannot_be_mended_by_a_tie(tmp_path):
    def silence(model, owner):
        model.model.norm.weight.zero_()  # so that states tell nothing of their tokens

    found = findings(
        make_decoder(tmp_path / "m", silence, tie_word_embeddings=False, settings=DecoderSettings())
    )["head"]
    assert found["severity"] == "fault" and "with its own output layer" in found["remedy"]


def test_an_output_layer_that_is_there_twice(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        path,
        metadata={"format": "pt"},
    )
    assert findings(copy) == {}  # a copy that is equal does no harm
    set_tensor(copy, "lm_head.weight", lambda tensor: tensor[7].add_(0.5))
    found = findings(copy)["head"]
    assert found["severity"] == "fault" and found["evidence"]["difference_of_two"] == pytest.approx(
        0.5, abs=1e-4
    )


def test_collapse_and_tokens_that_are_always_on(tmp_path):
    def everywhere(count, logit):
        def change(model, owner):
            model.cls.predictions.decoder.bias[noise(owner, count)] = logit

        return change

    found = findings(make_masked(tmp_path / "many", everywhere(60, 20.0)))
    assert (
        found["collapse"]["severity"] == "fault"
        and found["collapse"]["evidence"]["mean_cosine"] > 0.9
    )
    assert (
        found["always_on"]["severity"] == "fault" and found["always_on"]["evidence"]["tokens"] >= 60
    )
    found = findings(make_masked(tmp_path / "one", everywhere(1, 2.0)))
    assert set(found) == {"always_on"} and found["always_on"]["severity"] == "warning"
    owner = make_tokenizer(masked=True)
    assert found["always_on"]["evidence"]["heaviest"].split()[0] == owner.convert_ids_to_tokens(
        noise(owner, 1)[0]
    )


def test_the_trap_of_bos(tmp_path):
    def change(model, owner):
        weight = model.get_input_embeddings().weight
        weight[:, 0] = 0.0
        weight[noise(owner, 40), 0] = 0.5
        weight[owner.bos_token_id, 0] = 1.0

    trapped = DecoderSettings(logit_shift=SHIFT, bos=True, pooled="all")
    folder = make_decoder(tmp_path / "m", change, settings=trapped)
    found = findings(folder)["sink"]
    assert found["severity"] == "fault" and found["evidence"]["position"] == "special tokens"
    assert found["evidence"]["mean_cosine"] > 0.5 > found["evidence"]["without_it"]
    for cured in (DecoderSettings(logit_shift=SHIFT), DecoderSettings(logit_shift=SHIFT, bos=True)):
        assert findings(folder, decoder=cured) == {}


def all_alike_at_first(model, owner):
    """The first position, whatever stands there, makes every token active."""
    weight, places = model.get_input_embeddings().weight, model.transformer.wpe.weight
    weight[:, 0] = 0.02
    places[0, 0] = 50.0
    model.transformer.ln_f.weight[0] = 8.0


def test_a_sink_at_the_first_token_and_the_prompt_that_would_cure_it(tmp_path):
    folder = make_decoder(tmp_path / "m", all_alike_at_first, family="gpt2")
    found = findings(folder)
    assert (
        found["sink"]["severity"] == "fault"
        and found["sink"]["evidence"]["position"] == "first token"
    )
    gain = found["prompts"]["evidence"]
    assert (
        gain["with_usual_prompts"] > gain["mean_reciprocal_rank"] + 0.15
        and "query: " in found["prompts"]["remedy"]
    )
    prompted = DecoderSettings(
        logit_shift=SHIFT, query_prompt="query: ", document_prompt="passage: "
    )
    assert not {"sink", "prompts", "collapse"} & set(findings(folder, decoder=prompted))


def test_prompts_that_the_folder_names(copy):
    (copy / "README.md").write_text(
        'Put "query: " before a question and "passage: " before a text.'
    )
    found = findings(copy)
    assert set(found) == {"prompts"} and found["prompts"]["severity"] == "warning"
    (copy / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "find: ", "document": "", "sts": "same: "}})
    )
    found = findings(copy)
    assert found["prompts"]["severity"] == "fault" and found["prompts"]["evidence"]["stated"] == {
        "query": "find: "
    }
    assert severities(copy, decoder=DecoderSettings(logit_shift=SHIFT, query_prompt="find: ")) == {}


@pytest.mark.parametrize(("length", "severity"), [(40, "fault"), (150, "warning")])
def test_truncation(length, severity, healthy):
    found = findings(healthy, decoder=DecoderSettings(logit_shift=SHIFT, max_length=length))[
        "truncation"
    ]
    assert found["severity"] == severity
    assert found["evidence"]["max_length"] == length and found["evidence"]["network_holds"] == 512
    assert length // 2 < found["evidence"]["words_of_a_document"] < length
    assert "never seen: raise max_length (--max-length" in found["remedy"]


def test_truncation_where_the_network_ends_is_not_mended_by_a_longer_limit(tmp_path):
    folder = make_decoder(tmp_path / "m", max_position_embeddings=64)
    found = findings(folder, decoder=DecoderSettings(logit_shift=SHIFT))["truncation"]
    assert found["evidence"]["max_length"] == found["evidence"]["network_holds"] == 64
    assert "this network cannot read more; split documents into passages" in found["remedy"]


def test_padding_on_the_left_without_positions(tmp_path):
    folder = make_decoder(
        tmp_path / "m",
        lambda model, owner: model.transformer.wpe.weight.mul_(20),
        family="gpt2",
        side="left",
    )
    found = findings(folder)["padding"]
    assert found["severity"] == "warning" and found["evidence"]["tokenizer_pads"] == "left"
    assert found["evidence"]["as_the_tokenizer_pads"] < 0.99 < found["evidence"]["in_a_batch"]
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"left"', '"right"'))
    assert "padding" not in findings(folder)


def test_leaving_light_terms_out_is_no_matter_of_padding(healthy):
    """What is compared are vectors with as many terms, and not those that the encoder would cut."""
    found = findings(healthy, decoder=DecoderSettings(centered=True, top_k=5))
    assert "padding" not in found


def test_a_network_of_an_unforeseen_kind_is_a_fault(healthy, monkeypatch):
    def fail(*_, **__):
        raise TypeError("unsupported operand type(s) for /: 'NoneType' and 'float'")

    monkeypatch.setattr(Encoder, "load", fail)
    found = findings(healthy)["loading"]
    assert found["severity"] == "fault"
    assert (
        found["evidence"]["reason"]
        == "TypeError: unsupported operand type(s) for /: 'NoneType' and 'float'"
    )
    assert found["remedy"] == "Unsupported architecture or configuration; please report it."


def test_a_network_that_sees_its_padding(tmp_path):
    found = findings(
        make_masked(
            tmp_path / "m",
            kind="FNet",
            initializer_range=0.2,
            tpu_short_seq_length=512,
            type_vocab_size=1,
        )
    )["padding"]
    assert found["severity"] == "fault" and found["evidence"]["in_a_batch"] < 0.99


def test_a_tokenizer_without_a_padding_token(copy):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (copy / name).is_file():
            record = json.loads((copy / name).read_text())
            record.pop("pad_token", None)
            (copy / name).write_text(json.dumps(record))
    found = findings(copy)
    assert set(found) == {"padding"} and found["padding"]["evidence"]["pad_token"] is None


def test_weights_that_vanish_in_quantization(tmp_path):
    def outlier(model, owner):
        head = model.cls.predictions
        head.decoder.weight.copy_(model.get_input_embeddings().weight * 0.01)
        head.decoder.bias.mul_(0.01)
        head.decoder.bias[noise(owner, 1)] = 1e6

    found = findings(make_masked(tmp_path / "m", outlier, tie_word_embeddings=False))
    assert found["quantization"]["severity"] == "fault"
    evidence = found["quantization"]["evidence"]
    assert (
        evidence["vanished"] > 0.5
        and evidence["median"] < evidence["smallest_kept"] < evidence["largest"]
    )


@pytest.mark.parametrize(("shift", "share"), [(50.0, "empty_texts"), (-50.0, None)])
def test_texts_without_terms_and_texts_with_all_of_them(shift, share, healthy):
    found = findings(healthy, decoder=DecoderSettings(logit_shift=shift))["activity"]
    assert found["severity"] == "fault"
    assert found["evidence"]["empty_texts"] == (1.0 if share else 0.0)
    assert found["remedy"].startswith(
        "No logit is above zero" if share else "Vectors are not sparse"
    )


# --- the table ---


def test_a_rule_judges_by_its_limits():
    rising = Rule("c", "q", "m", "r", warning=0.2, fault=0.5)
    assert [rising.judge(value) for value in (0.2, 0.21, 0.5, 0.51)] == [
        None,
        "warning",
        "warning",
        "fault",
    ]
    falling = Rule("c", "q", "m", "r", warning=0.5, fault=0.2, is_lower_worse=True)
    assert [falling.judge(value) for value in (0.5, 0.49, 0.2, 0.19)] == [
        None,
        "warning",
        "warning",
        "fault",
    ]
    assert Rule("c", "q", "m", "r", fault=0).judge(1) == "fault"
    assert Rule("c", "q", "m", "r", warning=0).judge(99) == "warning"


def test_the_worst_rule_of_a_check_makes_its_finding():
    rules = (
        Rule("c", "first", "m", "the first of {what}", warning=0),
        Rule("c", "second", "m", "the second of {what}", warning=0, fault=5),
        Rule("other", "first", "m", "of another check", fault=0),
    )

    def remedy(**values):
        finding = judge("c", Measured({"seen": 1}, values, {"what": "two"}), rules)
        return finding.severity, finding.remedy

    assert remedy(first=1, second=1) == ("warning", "the first of two")
    assert remedy(first=1, second=6) == ("fault", "the second of two")
    assert remedy(second=1) == ("warning", "the second of two")
    assert remedy(first=0) == (None, "")


def test_every_rule_says_what_it_measures_and_a_remedy():
    for rule in RULES:
        assert rule.measures and rule.remedy.endswith(".")
        assert rule.warning is not None or rule.fault is not None


# --- as a command ---


def test_a_model_that_does_not_load_is_a_fault_and_no_model_an_error(copy, tmp_path):
    transformers.AutoModel.from_pretrained(copy).save_pretrained(copy)
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
    (found,) = examination.examine(str(copy))["findings"]
    assert (found["name"], found["severity"]) == ("loading", "fault")
    assert "lacks weights that a decoder needs (lm_head.weight)" in found["evidence"]["reason"]
    assert found["remedy"] == "See the reason."
    with pytest.raises(
        ModelError, match="here does not exist; it must be a folder that holds a model"
    ):
        examination.examine(str(tmp_path / "nothing" / "here"))
    with pytest.raises(ConfigError, match="the lexical model is not a neural network"):
        doctor.doctor("lexical")


def test_a_decoder_that_says_nothing_of_how_it_reads(copy):
    (copy / "sparse_ir.json").unlink()
    report = examination.examine(str(copy))
    assert report["kind"] == "decoder, settings missing"
    (found,) = report["findings"]
    assert "a decoder needs sparse_ir.json beside it" in found["evidence"]["reason"]
    assert "with --decoder, or put it into the model's folder as sparse_ir.json" in found["remedy"]


def test_the_shipped_model_is_no_decoder(tmp_path):
    path = tmp_path / "any.json"
    path.write_text('{"format": 1}')
    (found,) = doctor.doctor("default", decoder=path)["findings"]
    assert found["name"] == "loading" and found["remedy"] == "See the reason."
    assert (
        "is a sparse encoder by its modules.json, not a decoder; drop decoder=... (--decoder)"
        in found["evidence"]["reason"]
    )


@pytest.mark.parametrize("length", [4, 5000, -1])
def test_a_file_that_was_cut_short_is_a_fault(copy, length):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    (found,) = examination.examine(str(copy))["findings"]
    assert (found["name"], found["severity"]) == ("loading", "fault")
    assert "model.safetensors is not readable as safetensors" in found["evidence"]["reason"]


@pytest.mark.parametrize("content", ["not json", "[]", '{"prompts": "x"}'])
def test_prompts_that_cannot_be_read_are_a_fault(copy, content):
    (copy / "config_sentence_transformers.json").write_text(content)
    found = findings(copy)["prompts"]
    assert (
        found["severity"] == "fault"
        and "config_sentence_transformers.json" in found["evidence"]["reason"]
    )


def test_texts_of_ones_own(healthy, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": str(number), "title": "", "text": text}) + "\n"
            for number, text in enumerate(PROBES)
        )
    )
    report = doctor.doctor(str(healthy), input=str(tmp_path))
    assert report["measured"]["collapse"]["pairs"] == 32 * 31 // 2 and report["measured"][
        "retrieval"
    ] == {"questions": 0}
    with pytest.raises(DataError, match="2 different texts given; there must be at least 4"):
        examination.examine(str(healthy), texts=["a", "b", "a", " "])


def test_the_command_tells_by_its_exit_code(healthy, tmp_path, capsys):
    assert cli.main(["doctor", "--model", str(healthy), "--quiet"]) == 0
    assert "findings  none" in capsys.readouterr().out
    (tmp_path / "short.json").write_text(json.dumps({"format": 1, "max_length": 12}))
    done = run_command("doctor", "--model", healthy, "--decoder", tmp_path / "short.json", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["healthy"]) == (1, "", False)
    assert "truncation" in [found["name"] for found in report["findings"]]
