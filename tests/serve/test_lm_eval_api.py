"""What lm-eval's local-completions makes of our answers: `--model gemmule`, to the bit.

tests/clients runs the whole program; here its reading of answers is used, which needs no client.
"""

import random
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.torch_runner import TorchRunner

TEXT = "the a sea ship captain said never wind old and of to under red sail harbour"


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


def test_figures_are_equal_to_the_bit(client: TestClient, lm: LanguageModel) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    if isinstance(make_runner(lm.model), TorchRunner):
        pytest.skip("there is no native runner here: bits depend on how prompts are chunked")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from gemmule.evals.lm_eval_model import GemmuleLM

    rng = random.Random(2)
    pairs = [
        tuple(" ".join(rng.choices(TEXT.split(), k=rng.randint(1, most))) for most in (30, 9))
        for _ in range(20)
    ]
    local = GemmuleLM(lm)
    figures = []
    for context, continuation in pairs:
        start, ids = local._pair(context, " " + continuation)
        payload = {
            "prompt": [start + ids], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": True,
        }  # fmt: skip
        answer = client.post("/v1/completions", json=payload).json()
        figures += LocalCompletionsAPI.parse_logprobs(answer, ctxlens=[len(start)])
    asked = [instance("loglikelihood", context, " " + text) for context, text in pairs]
    assert figures == local.loglikelihood(asked, disable_tqdm=True)
