# For fingers that type make: ./run does the work.
.PHONY: demo test check lint fmt

demo test check lint fmt:
	./run $@
