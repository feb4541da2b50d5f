#include "golden.hpp"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "layer.hpp"
#include "sha256.hpp"

namespace detconv::test {
namespace {

// "2,3" as numbers; of the length that is asked for.
template <std::size_t N>
std::array<Index, N> numbers(const std::string& text) {
    std::array<Index, N> values;
    std::istringstream in(text);
    for (Index& value : values)
        if (!(in >> value) || (in.get() != ',' && !in.eof()))
            throw std::invalid_argument("no list of numbers: " + text);
    return values;
}

template <class T>
std::string hash(const std::vector<T>& values) {
    std::vector<std::uint8_t> bytes;
    for (const T value : values) {
        std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t> bits;
        std::memcpy(&bits, &value, sizeof bits);
        for (std::size_t i = 0; i < sizeof bits; ++i) bytes.push_back(static_cast<std::uint8_t>(bits >> (8 * i)));
    }
    return sha256(bytes);
}

// What the line says of its case, run: the hash to be compared with its first column.
std::string computed(const std::string& line, bool gradients, const Execution& execution) {
    std::string type, input, weight, stride, padding, dilation, bias, summation;
    Layer layer;
    std::istringstream in(line);
    in >> std::ws >> type >> type >> input >> weight >> stride >> padding >> dilation >> layer.groups >> bias >>
        layer.kind >> layer.seed;
    std::getline(in >> std::ws, summation);
    auto extent = [](const std::string& text) { return Extent{numbers<2>(text)[0], numbers<2>(text)[1]}; };
    layer.input = numbers<4>(input), layer.weight = numbers<4>(weight);
    layer.stride = extent(stride), layer.dilation = extent(dilation);
    if (padding == "same")
        layer.padding = same_padding(layer.weight, layer.stride, layer.dilation);
    else
        layer.padding = {extent(padding).h, extent(padding).h, extent(padding).w, extent(padding).w};
    layer.bias = bias == "bias";
    auto run = [&]<class T>(T) {
        const auto run_passes = gradients ? differentiate<T> : convolve<T>;
        return hash(run_passes(layer, Arrays<T>(layer), summation_from(summation), execution));
    };
    return type == "float32" ? run(float()) : run(double());
}

}  // namespace

bool check_golden(const std::string& file) {
    std::ifstream in(file);
    if (!in) throw std::invalid_argument("cannot read " + file);
    const Execution execution{dispatch::current(), parallel::num_threads(), {}};
    const bool gradients = file.ends_with("gradients.txt");
    int equal = 0, different = 0;
    for (std::string line; std::getline(in, line);) {
        if (line.empty() || line[0] == '#') continue;
        const std::string found = computed(line, gradients, execution);
        if (line.starts_with(found)) {
            ++equal;
        } else {
            ++different;
            std::printf("not %s:\n%s\n", found.c_str(), line.c_str());
        }
    }
    std::printf("%s: %d golden hashes equal, %d different\n", execution.kernels.name, equal, different);
    return equal > 0 && different == 0;
}

}  // namespace detconv::test
