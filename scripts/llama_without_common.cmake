# Included by CMake after llama.cpp's project() line (CMAKE_PROJECT_llama.cpp_INCLUDE).
# The binding's own CMakeLists.txt forces the cache variable LLAMA_BUILD_COMMON to ON, which no -D can undo; a normal
# variable of that name wins over it. Nothing in the binding loads the library "common", and it is half of all compiling.
set(LLAMA_BUILD_COMMON OFF)
