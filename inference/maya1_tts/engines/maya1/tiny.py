"""A Maya1 with random weights: real architecture, token layout and codec, so narrow that it runs anywhere.

It proves that tokens are laid out, framed, batched, streamed and stopped as they should. It proves nothing
about sound, since what it says is noise.
"""

import json
from pathlib import Path

import torch
from snac import SNAC
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from maya1_tts.engines.maya1 import tokens
from maya1_tts.engines.maya1.codec import CONFIG
from maya1_tts.engines.maya1.folder import RANDOM_WEIGHTS, write_sums
from maya1_tts.errors import ConfigError
from maya1_tts.normalize import EMOTION_TAGS

SEED = 0
FIRST_TAG = tokens.LAST_CODE + 1
# How much likelier than an audio token the end of speech is, in logits. With the weights below it comes
# about once in 20 frames.
END_BIAS = 2.3


def make_tiny_model(folder: Path) -> None:
    """Write the model to a new folder, the same bytes each time. Raises ConfigError if there is something."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; allowed: a new folder.")
    (folder / "model").mkdir(parents=True)
    (folder / "snac").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        _write_llama(folder / "model")
        _write_snac(folder / "snac")
    _tokenizer().save(str(folder / "model" / "tokenizer.json"))
    for file in folder.rglob("*.*"):
        file.chmod(0o644)  # safetensors makes its files private, and a container reads them as another user
    write_sums(folder)


def _write_llama(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=tokens.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.AUDIO_END,
        pad_token_id=tokens.PADDING,
        dtype="bfloat16",
    )
    setattr(config, RANDOM_WEIGHTS, True)
    model = LlamaForCausalLM(config)
    embeddings = model.model.embed_tokens.weight
    with torch.no_grad():
        # Every token has the same large first component, so the model's last state has one, too; the end of
        # speech has a larger one, and embeddings are the output layer as well: that makes it likelier than
        # others.
        embeddings.normal_(std=0.1)
        embeddings[:, 0] = 1.0
        embeddings[tokens.AUDIO_END, 0] += END_BIAS / config.hidden_size**0.5
    for weights in model.parameters():
        weights.data = weights.data.bfloat16()
    model.save_pretrained(folder)


def _write_snac(folder: Path) -> None:
    config = CONFIG | {"encoder_dim": 8, "decoder_dim": 32}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.save(SNAC(**config).state_dict(), folder / "pytorch_model.bin")


def _tokenizer() -> Tokenizer:
    """One token for each byte of text, and the special tokens at their real ids.

    The ids of the emotion tags are not published; here they are the ones behind the audio tokens.
    """
    special = {
        "<|begin_of_text|>": tokens.BOS,
        "<|eot_id|>": tokens.TEXT_END,
        "<|audio_start|>": tokens.AUDIO_START,
        "<|audio_end|>": tokens.AUDIO_END,
        "<|human_start|>": tokens.HUMAN_START,
        "<|human_end|>": tokens.HUMAN_END,
        "<|model_start|>": tokens.MODEL_START,
    } | {f"<{tag}>": FIRST_TAG + place for place, tag in enumerate(EMOTION_TAGS)}
    letters = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=letters | special, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return tokenizer
