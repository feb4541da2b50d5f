// Memory for the time of a call.
#pragma once

#include "geometry.hpp"

namespace detconv {

// 64-byte aligned memory that grows; what it holds at first is not defined. A thread keeps up to 4 MiB of what it gave
// back for its next call: taken anew, every page would cost a fault and every piece a search.
class Buffer {
public:
    Buffer() = default;
    ~Buffer() { give_back(); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Growing loses what it held.
    template <class T>
    T* at_least(Index count) {
        const Index bytes = checked_multiply(count, sizeof(T), "scratch memory");
        if (bytes > size_ || memory_ == nullptr) take(bytes);
        return static_cast<T*>(memory_);
    }

private:
    void take(Index bytes);
    void give_back();

    void* memory_ = nullptr;
    Index size_ = 0;
};

}  // namespace detconv
