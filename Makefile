# The newcomer's two commands: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install quickstart chat serve test clients check bench fuzz format clean

install: $(STAMP)

# A change of the kernels builds them again.
$(STAMP): pyproject.toml constraints.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gemmule needs Python 3.11 or newer: make install PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,language,report,carbon,gguf,teachers,eval,serve,dev]'
	@touch $(STAMP)

quickstart: install
	$(BIN)/gemmule quickstart $(ARGS)

# After the quickstart, which it runs first if there is none: a student that answers in turns.
chat: install
	@test -f runs/quickstart/comparison.json || $(BIN)/gemmule quickstart
	$(BIN)/gemmule quickstart --chat $(ARGS)

# After the quickstart: its student, with a chat page.
serve: install
	$(BIN)/gemmule serve runs/quickstart/student $(ARGS)

test: install
	$(BIN)/pytest -n auto --dist loadfile $(ARGS)

# Programs that were not written for gemmule; they are downloaded into build/clients.
clients: install
	$(BIN)/pytest -m clients tests/clients $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_language.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python bench/train.py --json bench/results/train.json
	$(BIN)/python bench/attention.py --json bench/results/attention.json
	$(BIN)/python bench/checkpoints.py --json bench/results/checkpoints.json
	$(BIN)/python bench/distill_loss.py --rounds 2 --steps 1 --json bench/results/distill_loss.json
	$(BIN)/python bench/data.py --json bench/results/data.json
	$(BIN)/python bench/plan.py --json bench/results/plan.json
	$(BIN)/python bench/published_runs.py --json bench/results/published_runs.json
	$(BIN)/python bench/int8_teacher.py --json bench/results/int8_teacher.json
	$(BIN)/python bench/inference.py --json bench/results/inference.json
	$(BIN)/python bench/eval.py --json bench/results/eval.json
	@test -d runs/quickstart/card || echo "bench/logit_store.py and bench/quantization.py need the quickstart's teacher: make quickstart"
	$(BIN)/python bench/quantization.py --json bench/results/quantization.json
	$(BIN)/python bench/logit_store.py --json bench/results/logit_store.json --plot docs/logit-store.svg

fuzz: install
	$(BIN)/python tests/fuzz/run.py --inputs 100000 $(ARGS)

clean:
	rm -rf .venv build dist web/node_modules src/gemmule/quant/*.so
