#include "scratch.hpp"

#include <array>
#include <cstdlib>
#include <new>
#include <utility>

namespace detconv {
namespace {

struct Piece {
    void* memory = nullptr;
    Index size = 0;
};

// What a thread keeps between its calls. Each thread has its own: nothing is locked, and a forked child has a copy.
class Kept {
public:
    ~Kept() {
        for (const Piece& piece : pieces_) std::free(piece.memory);
    }

    // The smallest piece that is large enough, and not many times as large; empty: none. Then what is kept makes room
    // for a new one, so that a call with other sizes than the last does not hold both.
    Piece take(Index bytes) {
        Piece* best = nullptr;
        for (Piece& piece : pieces_)
            if (piece.size >= bytes && piece.size / 4 <= bytes + 4096 && (best == nullptr || piece.size < best->size))
                best = &piece;
        if (best == nullptr) {
            make_room(bytes);
            used_ += bytes;
            return {};
        }
        total_ -= best->size, used_ += best->size;
        return std::exchange(*best, Piece{});
    }

    void give(Piece given) {
        used_ -= given.size;
        make_room(given.size);
        if (given.size > most) return std::free(given.memory);
        drop(pieces_[next_]);
        pieces_[next_] = given;
        total_ += given.size;
        next_ = (next_ + 1) % pieces_.size();
    }

private:
    // The oldest go first.
    void make_room(Index bytes) {
        for (std::size_t i = 0; i < pieces_.size() && total_ > 0 && total_ + used_ + bytes > most; ++i)
            drop(pieces_[(next_ + i) % pieces_.size()]);
    }

    void drop(Piece& piece) {
        total_ -= piece.size;
        std::free(std::exchange(piece, Piece{}).memory);
    }

    static constexpr Index most = 4 << 20;
    std::array<Piece, 16> pieces_;
    std::size_t next_ = 0;
    Index total_ = 0, used_ = 0;  // bytes kept, and bytes that buffers hold
};

thread_local Kept kept;

}  // namespace

void Buffer::take(Index bytes) {
    give_back();
    const Index size = (bytes + 127) / 64 * 64;
    Piece piece = kept.take(size);
    if (piece.memory == nullptr) piece = {std::aligned_alloc(64, static_cast<std::size_t>(size)), size};
    if (piece.memory == nullptr) throw std::bad_alloc();
    memory_ = piece.memory, size_ = piece.size;
}

void Buffer::give_back() {
    if (memory_ != nullptr) kept.give({std::exchange(memory_, nullptr), std::exchange(size_, 0)});
}

}  // namespace detconv
