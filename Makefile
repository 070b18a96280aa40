.PHONY: demo setup test

setup:
	bash tools/setup_env.sh

demo:
	bash tools/demo.sh

test:
	bash tools/run_tests.sh
