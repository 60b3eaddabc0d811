PYTHON ?= python3
PY := .venv/bin/python
TORCH :=
OUT := demo
NET := --dataset digits --arch resnet18 --image_size 32 --data_root $(OUT)/data --out $(OUT)
A := $(OUT)/model_checkpoints/checkpoint_digits_resnet18_sd0.pth.tar
B := $(OUT)/model_checkpoints/checkpoint_digits_resnet18_sd5.pth.tar
FEATURES := $(OUT)/convOuts/digits_resnet18/digits_L2
TRANSNET := $(OUT)/model_checkpoints/digits_resnet18/checkpoint_L2

# Two steps at a time, each with half of the processors; each one's lines come together, at its end
PAIR := OMP_NUM_THREADS=$$($(PY) -c "import os; print(max(1, os.cpu_count() // 2))") \
	$(MAKE) --no-print-directory -j 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=recurse)

.PHONY: demo net_0 net_5 comparison trans_nets test lint bench clean

# Two ResNet-18 that differ in their seed alone: how much of what one knows does the other know?
demo: .venv/.for_use
	$(PY) PrepareData.py digits --out $(OUT)/data
	@echo "training two nets side by side"
	@$(PAIR) net_0 net_5
	@echo "comparing all layers, and beside it fitting Trans-Nets to one of them"
	@$(PAIR) comparison trans_nets

net_0 net_5: net_%:
	$(PY) Training.py $(NET) --seed $* --suffix sd$* --epochs 3 -b 64 --lr 0.02 --logspace 1 --resume auto

comparison:
	$(PY) Compare.py $(A) $(B) --images $(OUT)/data/digits --at layer1,layer2,layer3,layer4 --out $(OUT)/comparison

trans_nets:
	$(PY) ConvOutput.py --resume1 $(A) --resume2 $(B) --conv_layer 2 --t_or_v both --data_root $(OUT)/data --out $(OUT)
	$(PY) Training_TransNet.py --convOut_path $(FEATURES) --standardise --solve --layers 1,3 --steps 100 --alpha 0.1 --out $(OUT) --resume auto
	$(PY) Variance.py --net_in $(A) --net_tar $(B) --transnet $(TRANSNET)_layers3.pth.tar $(TRANSNET)_layers1.pth.tar \
		--data_root $(OUT)/data --json $(OUT)/variance.json --csv $(OUT)/variance.csv \
		--figure $(OUT)/components.png --spectrum $(OUT)/spectrum.png

test: lint
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy consistency distillation models utils experiments benchmarks *.py

bench: .venv/.installed
	for bench in benchmarks/bench_*.py; do $(PY) -m benchmarks.$$(basename $$bench .py) || exit 1; done

clean:
	rm -rf $(OUT)

# What the steps need. TORCH has words for pip that name another build of PyTorch and torchvision, for
# instance an index of builds without CUDA.
.venv/.for_use: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, set PYTHON=...')"
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: 6 GB with CUDA's libraries; some minutes"
	$(if $(TORCH),$(PY) -m pip install --disable-pip-version-check torch torchvision $(TORCH))
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

# And what the tests need besides
.venv/.installed: .venv/.for_use tests/requirements.txt
	$(PY) -m pip install --disable-pip-version-check -r tests/requirements.txt
	touch $@
