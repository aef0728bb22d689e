# Compiler settings, and the two helpers that every folder uses.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# -g1: line tables for stack traces, without slowing the link.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>
                    $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
include_directories(${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/proto)

if(SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_path(XXHASH_INCLUDE xxhash.h REQUIRED)
find_library(XXHASH_LIBRARY xxhash REQUIRED)
if(ENABLE_CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
if(ENABLE_MPI)
  find_package(MPI REQUIRED COMPONENTS CXX)
endif()

# add_project_library(name SOURCES a.cc ... [DEPS lib ...])
function(add_project_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
endfunction()

# add_project_binary(name SOURCES main.cc ... [DEPS lib ...]) -> bin/<name>
function(add_project_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
endfunction()

# add_project_test(folder/x_test.cc [DEPS lib ...] [RANKS n] [TIMEOUT s]) -> test "folder/x_test";
# with RANKS it runs under mpirun. The repository's root is its working directory.
function(add_project_test file)
  cmake_parse_arguments(ARG "" "RANKS;TIMEOUT" "DEPS" ${ARGN})
  string(REGEX REPLACE "\\.(cc|cu)$" "" name ${file})
  string(REPLACE "/" "_" target ${name})
  add_executable(${target} ${file})
  if(ARG_RANKS)
    target_link_libraries(${target} PRIVATE ${ARG_DEPS} GTest::gtest)
    set(launch ${PROJECT_SOURCE_DIR}/tools/mpirun.sh ${ARG_RANKS})
  else()
    target_link_libraries(${target} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
    set(launch "")
  endif()
  add_test(NAME ${name} COMMAND ${launch} $<TARGET_FILE:${target}>
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()
