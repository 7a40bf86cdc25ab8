# The two commands of the README are `make demo` and `make test`; each works on a fresh clone by itself.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= out

.PHONY: install demo test test-slow test-minimums gpu docs dist lint format types graph kernels score gallery bench regress clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,openvino,control,export,serve,ray,docs,dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --disable-pip-version-check --no-deps tensorrt-stubs==10.13.0.35.1 tritonclient==2.73.0
	@touch $@

demo: $(INSTALLED)
	@mkdir -p $(OUT)
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	$(BIN)/flux-run generate $(OUT)/flux-nano --steps 12 --guidance 1 --force --out $(OUT)/demo.png \
	    "a red circle at the top left on a white background" \
	    "a yellow square at the left and a green cross at the right on a purple background" \
	    "a blue triangle in the center on a gray background"
	@echo "The pictures are $(OUT)/demo-0.png, $(OUT)/demo-1.png and $(OUT)/demo-2.png"

# Processes that share the tests, file by file; 0: none, for a debugger.
WORKERS ?= 2
test: $(INSTALLED)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" --durations=25

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

# What only a GPU can show: checks and times, at most 30 minutes, in an environment of its own. Without one: what it would do.
gpu:
	$(PYTHON) benchmarks/gpu.py

# Wheel and sdist of what is committed, checked by twine, and the sdist installed and asked for its version.
dist: $(INSTALLED)
	rm -rf $(OUT)/dist && mkdir -p $(OUT)/dist/source
	git archive HEAD | tar -x -C $(OUT)/dist/source
	$(BIN)/python -m build --outdir $(OUT)/dist $(OUT)/dist/source
	$(BIN)/twine check --strict $(OUT)/dist/*.whl $(OUT)/dist/*.tar.gz
	$(PYTHON) -m venv $(OUT)/dist/installed
	$(OUT)/dist/installed/bin/pip install $(PIP_FLAGS) --quiet --disable-pip-version-check --constraint constraints.txt "$$(ls $(OUT)/dist/*.tar.gz)[cpu]"
	$(OUT)/dist/installed/bin/flux-run --version --verbose

# Environments with the oldest versions that setup.cfg allows: painting with [cpu], building and verifying with
# [export]. KEEP=torch takes torch of constraints.txt, where an index has older ones with CUDA alone.
KEEP ?= torch
test-minimums: $(INSTALLED)
	rm -rf $(OUT)/minimums && mkdir -p $(OUT)/minimums
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	$(BIN)/flux-run generate $(OUT)/flux-nano "a red circle at the top left on a white background" \
	    --backend onnxruntime --steps 4 --seed 3 --force --out $(OUT)/minimums/now.png
	$(PYTHON) tests/at_minimums.py cpu $(OUT)/minimums $(OUT)/flux-nano
	$(PYTHON) tests/at_minimums.py export $(OUT)/minimums $(KEEP:%=--keep %)

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) .links
	$(BIN)/mypy

.PHONY: .links
.links:
	@mkdir -p .links/flux_trt
	@for part in plugins runtime exporter serving; do ln -sfn ../../$$part .links/flux_trt/$$part; done
	@ln -sfn ../../benchmarks/bench .links/flux_trt/bench

# The pages as a site, in out/site; a link that leads nowhere or a page that nothing leads to ends it.
docs: $(INSTALLED) .links
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# Which room and which file imports which: tests/project/test_rooms.py says what is allowed.
graph:
	@$(PYTHON) tests/import_graph.py

kernels: $(INSTALLED)
	$(BIN)/python -m flux_trt.plugins.qk_norm_rope.compile

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

score: $(INSTALLED)
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	cd examples/flux-nano && $(abspath $(BIN))/python -m nano.score $(abspath $(OUT))/flux-nano \
	    --guidance 1 --json $(abspath benchmarks/results/flux_nano_score.json) --sheet samples.png
	$(BIN)/python benchmarks/strip.py
	$(BIN)/python benchmarks/table.py

gallery: $(INSTALLED)
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	$(BIN)/flux-export build examples/flux-nano-fill --out $(OUT)/flux-nano-fill
	$(BIN)/flux-export build examples/flux-nano-canny --out $(OUT)/flux-nano-canny
	PYTHONPATH=examples/flux-nano $(BIN)/python benchmarks/tasks.py $(OUT)/flux-nano \
	    --fill $(OUT)/flux-nano-fill --canny $(OUT)/flux-nano-canny
	$(BIN)/python benchmarks/table.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/full_size_engines.py
	$(BIN)/python benchmarks/fp8.py
	$(BIN)/python benchmarks/rope.py --static
	$(BIN)/python benchmarks/tiles.py
	$(BIN)/python benchmarks/cpu.py
	PYTHONPATH=examples/flux-nano $(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/ladder.py
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	$(BIN)/flux-bench run $(OUT)/flux-nano --device cpu --backend onnxruntime --backend openvino \
	    --peer diffusers --peer compile --peer onnx-export --peer openvino --steps 12 --guidance 1 --runs 20 \
	    --prompts benchmarks/flux-nano-prompts.txt --checker examples/flux-nano/nano/checker.py --scored 64 \
	    --out benchmarks/results/bench
	$(BIN)/flux-bench roofline $(OUT)/flux-nano --device cpu --steps 12 --out benchmarks/results/bench
	$(BIN)/flux-bench scaling $(OUT)/flux-nano --device cpu --seconds 300 --out benchmarks/results/bench
	$(BIN)/python benchmarks/table.py

# A bound of 2 on a share of diffusers' time: it falls when a fast path is lost, and does not when a machine is busy.
regress: $(INSTALLED)
	$(BIN)/flux-export build examples/flux-nano --out $(OUT)/flux-nano
	$(BIN)/flux-bench run $(OUT)/flux-nano --device cpu --peer diffusers --steps 12 --guidance 1 --starts 0 --patience 30 \
	    --prompts benchmarks/flux-nano-prompts.txt --checker examples/flux-nano/nano/checker.py --scored 64 \
	    --allow-noise --out $(OUT)/regress
	$(BIN)/flux-bench compare benchmarks/results/bench/run.json $(OUT)/regress/run.json \
	    --relative-to diffusers --bound 2 --anyway

clean:
	rm -rf $(OUT) build .links .pytest_cache .mypy_cache .ruff_cache
