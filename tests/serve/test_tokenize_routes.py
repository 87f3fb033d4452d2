"""/tokenize, /detokenize and /apply-template in both forms."""

import pytest
from starlette.testclient import TestClient

from gemmule.infer.language_model import LanguageModel

TEXT = "the sea 漢<start_of_turn>\n<eos>"
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_llama_cpp_s_form(client: TestClient, lm: LanguageModel, prefix: str) -> None:
    ids = lm.tokenizer.encode(TEXT)
    assert client.post(f"{prefix}/tokenize", json={"content": TEXT}).json() == {"tokens": ids}
    body = {"content": TEXT, "add_special": True, "with_pieces": True}
    tokens = client.post(f"{prefix}/tokenize", json=body).json()["tokens"]
    assert [token["id"] for token in tokens] == [lm.tokenizer.bos_id, *ids]
    data = b""
    for token in tokens[1:]:
        piece = token["piece"]
        data += piece.encode() if isinstance(piece, str) else bytes(piece)
    assert data.decode() == TEXT
    answer = client.post(f"{prefix}/detokenize", json={"tokens": ids}).json()
    assert answer == {"content": TEXT, "prompt": TEXT}


def test_vllm_s_form(client: TestClient, lm: LanguageModel) -> None:
    answer = client.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    ids = lm.tokenizer.encode(TEXT, bos=True)
    assert answer["tokens"] == ids
    assert answer["count"] == len(ids) == len(answer["token_strs"])
    assert answer["max_model_len"] == 256
    answer = client.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()
    assert answer["tokens"] == ids[1:]
    answer = client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert answer["tokens"] == lm.tokenizer.render_chat(MESSAGES)
    body = {"messages": MESSAGES, "add_generation_prompt": False}
    answer = client.post("/tokenize", json=body).json()
    assert answer["tokens"] == lm.tokenizer.render_chat(MESSAGES, generation_prompt=False)


def test_a_conversation_as_text(client: TestClient) -> None:
    messages = [{"role": "system", "content": "Be old."}, {"role": "user", "content": "sea"}]
    answer = client.post("/apply-template", json={"messages": messages}).json()
    assert answer["prompt"] == (
        "<bos><start_of_turn>user\nBe old.\n\nsea<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": "a", "prompt": "b"}),
        ("/tokenize", {"content": "a", "add_special_tokens": True}),
        ("/tokenize", {"prompt": "a", "with_pieces": True}),
        ("/tokenize", {"content": 1}),
        ("/tokenize", {"contents": "a"}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [2**70]}),
        ("/detokenize", {}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, path: str, body: dict[str, object]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
