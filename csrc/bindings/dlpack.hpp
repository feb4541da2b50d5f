// The part of DLPack's C interface that reads another library's arrays without Python objects between.
// Source: the DLPack standard, version 1.3, https://dmlc.github.io/dlpack/latest/c_api.html. The layouts hold for all
// versions 1.x.
#pragma once

#include <cstdint>

namespace detconv::dlpack {

constexpr const char* capsule_name = "dlpack_exchange_api";
constexpr std::uint32_t major_version = 1;
constexpr std::int32_t cpu = 1;
// Kinds of elements: the codes of ElementType.
constexpr std::uint8_t signed_integer = 0, unsigned_integer = 1, floating = 2;

struct Version {
    std::uint32_t major, minor;
};

struct Device {
    std::int32_t type, id;
};

struct ElementType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t axes;
    ElementType type;
    std::int64_t *shape, *strides;  // in elements
    std::uint64_t byte_offset;
};

// What a library's class of arrays has as __dlpack_c_exchange_api__. Functions return 0, or -1 with Python's error set.
struct Exchange {
    Version version;
    const Exchange* older;
    void (*allocate)();  // the names only: nothing here calls these three
    void (*share)();
    void (*adopt)();
    int (*read)(void* object, Tensor* tensor);  // valid as long as the object stays as it is; may be null
    void (*current_stream)();
};

}  // namespace detconv::dlpack
