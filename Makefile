# A thin wrapper; CMakeLists.txt and CMakePresets.json are the build, tools/ the scripts.
SHELL := /bin/bash
START := $(shell date +%s.%N)
DEVICE ?= cpu
RESULTS := bench/results/cpu
NVCC := $(shell command -v nvcc)
DEMO_TARGETS := bough-router bough-worker bough
SOURCES = $(shell git ls-files '*.cc' '*.h' '*.cu' '*.cuh')

.PHONY: help setup configure build demo serve test cuda bench clean format
help:
	@echo 'make demo     install, build, start a router and two groups, stream answers, stop'
	@echo 'make serve    the same system, until Ctrl-C (DEVICE=cuda: on GPUs)'
	@echo 'make test     every test, and the CUDA targets when nvcc is there'
	@echo 'make build    everything into build/cpu     make bench    what bench/ measures on this machine'
	@echo 'make cuda     the CUDA targets              make setup    the Debian packages'
	@echo 'make format   clang-format                  make clean    removes build/ and out/'

setup:
	@tools/setup.sh

configure: setup
	@mkdir -p out/logs
	@cmake --preset $(DEVICE) >out/logs/cmake.log 2>&1 || { cat out/logs/cmake.log; exit 1; }

build: configure
	cmake --build --preset $(DEVICE)

demo: configure
	cmake --build --preset $(DEVICE) --target $(DEMO_TARGETS)
	@DEVICE=$(DEVICE) tools/demo.sh $(START)

serve: configure
	cmake --build --preset $(DEVICE) --target $(DEMO_TARGETS)
	@DEVICE=$(DEVICE) exec tools/serve.sh

test: build
	ctest --test-dir build/$(DEVICE) --output-on-failure
ifneq ($(NVCC),)
	$(MAKE) cuda
endif

cuda: setup
ifeq ($(NVCC),)
	@echo 'make cuda: nvcc is not in PATH' >&2; exit 1
endif
	cmake --preset cuda
	cmake --build --preset cuda --target cuda

bench: configure
	cmake --build --preset cpu --target bench-kernels-cpu bench-engine
	build/cpu/bin/bench-kernels-cpu --out=$(RESULTS)/kernels.json
	build/cpu/bin/bench-engine --out=$(RESULTS)/engine_demo_tp1.json
	tools/mpirun.sh 2 build/cpu/bin/bench-engine --tp_size=2 --out=$(RESULTS)/engine_demo_tp2.json
	tools/mpirun.sh 2 build/cpu/bin/bench-engine --ep_size=2 --out=$(RESULTS)/engine_demo_ep2.json

clean:
	rm -rf build out

format:
	clang-format -i $(SOURCES)
