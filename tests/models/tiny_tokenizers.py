"""Tiny tokenizers of the kinds that real models use, trained on the spot."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog, <think>again</think> and again.",
    "Größe, naïve café, 北京市 and 東京; 🙂🚀 emoji; numbers 12345 <|im_start|>user im_end",
    "\tdef f(x):\n        return x + 1\n\n    # <tool_call> <s> </s> </s>",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
PLAIN_ADDED = ["<think>", "</think>", "<tool_call>", "  "]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_ADDED])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral 7B: BPE over marked spaces, with byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    ascii_text = [line.encode("ascii", "ignore").decode() for line in TEXT]
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=["<unk>", *SPECIAL, *bytes_], show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator([" ".join(ascii_text).replace(" ", "▁")], trainer)
    spec = json.loads(tokenizer.to_str())
    # In the wild, the byte tokens are part of the model alone.
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(spec))


def unigram() -> Tokenizer:
    """A model whose vocabulary itself holds the control tokens, as sentencepiece unigram models do."""
    letters = sorted(set("".join(TEXT)) - {" "})
    vocab = [("<unk>", -20.0), *((s, 0.0) for s in SPECIAL), ("▁", -3.0), *((c, -5.0) for c in letters), ("the", -4.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return tokenizer


def word_piece() -> Tokenizer:
    """Tokens that read differently in different places: the detokenizer must decode windows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", *SPECIAL], show_progress=False)
    )
    return tokenizer


KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram, "word_piece": word_piece}


def write(folder: Path, kind: str, **settings: object) -> Path:
    """tokenizer.json and tokenizer_config.json of a tiny tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
