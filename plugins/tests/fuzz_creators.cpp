// Random fields for the plugin creators: SECONDS, first SEED. Each seed is a thousand lists of
// fields. Tells on standard output what tests/fuzz/_program.py reads; a creator that crashes ends
// the program, one that takes what does not come back is broken.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "operators.h"
#include "plugin_testing.h"

namespace carafe::testing {
namespace {

#define CARAFE_PLUGIN_NAME(name, plugin, stem) #plugin,
std::vector<std::string> const kPlugins = {CARAFE_OPERATORS(CARAFE_PLUGIN_NAME)};
#undef CARAFE_PLUGIN_NAME

constexpr int kListsOfASeed = 1000;
/// Whatever length a field says, up to the most that any attribute takes, is there to be read.
constexpr std::int32_t kValues = 64;

class Attacker {
  public:
    explicit Attacker(std::uint64_t seed) : random_(seed) {}

    /// Whether a plugin was made; false in `sound` when it does not come back from its own fields.
    bool attack(bool& sound) {
        std::string const& name = one_of(kPlugins);
        std::vector<nvinfer1::PluginField> fields = mutated(name);
        nvinfer1::PluginFieldCollection collection{
            static_cast<std::int32_t>(fields.size()), fields.data()};
        if (chance(50)) collection = {one_of(counts_), nullptr};
        if (chance(50)) collection.nbFields = -collection.nbFields;
        nvinfer1::IPluginV3* const made = creator(name).createPlugin(
            chance(2) ? "test" : nullptr, chance(100) ? nullptr : &collection,
            chance(2) ? nvinfer1::TensorRTPhase::kBUILD : nvinfer1::TensorRTPhase::kRUNTIME);
        storage_.clear();
        names_.clear();
        if (made == nullptr) return false;
        PluginHandle const plugin(made);
        std::string const attributes = plugin.build->getMetadataString();
        PluginHandle const again(creator(name).createPlugin(
            "again", plugin.runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
        PluginHandle const clone((*plugin).clone());
        sound = again && clone && attributes == again.build->getMetadataString() &&
                attributes == clone.build->getMetadataString();
        infer(plugin);
        return true;
    }

  private:
    bool chance(int in) { return std::uniform_int_distribution<int>(1, in)(random_) == 1; }

    template <typename T>
    T const& one_of(std::vector<T> const& values) {
        return values[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random_)];
    }

    /// The fields that a creator announces, with values, some of them changed.
    std::vector<nvinfer1::PluginField> mutated(std::string const& name) {
        nvinfer1::PluginFieldCollection const& announced = *creator(name).getFieldNames();
        std::vector<nvinfer1::PluginField> fields;
        for (std::int32_t i = 0; i < announced.nbFields; ++i) {
            nvinfer1::PluginField field = announced.fields[i];
            field.data = values(field.type == PluginFieldType::kFLOAT32);
            field.length = field.length > 1 && !chance(8) ? one_of(lengths_) % 16 : 1;
            fields.push_back(field);
        }
        while (chance(2)) change(fields);
        return fields;
    }

    void change(std::vector<nvinfer1::PluginField>& fields) {
        if (fields.empty() || chance(6)) {
            fields.emplace_back(text(), values(chance(2)), one_of(types_), one_of(lengths_));
            return;
        }
        nvinfer1::PluginField& field = fields[random_() % fields.size()];
        switch (random_() % 7) {
            case 0:
                field.name = chance(2) ? nullptr : text();
                break;
            case 1:
                field.type = one_of(types_);
                break;
            case 2:
                field.length = one_of(lengths_);
                break;
            case 3:
                field.data = nullptr;
                break;
            case 4:
                fields.push_back(nvinfer1::PluginField(field));
                break;
            case 5:
                fields.erase(fields.begin() + (&field - fields.data()));
                break;
            default:
                std::swap(field, fields.front());
        }
    }

    char const* text() {
        static std::vector<std::string> const known{
            "",        "kernel_size",      "strides",  "iou_threshold",        "plugin_version",
            "strides", "plugin_namespace", "\xff\xfe", std::string(5000, 'x'), "%s%n"};
        names_.push_back(std::make_unique<std::string>(one_of(known)));
        return names_.back()->c_str();
    }

    void const* values(bool real) {
        storage_.push_back(std::make_unique<std::int32_t[]>(kValues));
        std::int32_t* const all = storage_.back().get();
        for (std::int32_t i = 0; i < kValues; ++i) {
            if (real) {
                float const value = chance(4) ? one_of(reals_) : 0.5f;
                std::memcpy(all + i, &value, sizeof value);
            } else {
                all[i] = chance(4) ? one_of(numbers_) : 1 + static_cast<int>(random_() % 7);
            }
        }
        return all;
    }

    /// Shapes of any number of inputs: refused or inferred.
    void infer(PluginHandle const& plugin) {
        std::vector<ShapeText> inputs;
        std::size_t const count = random_() % 6;
        for (std::size_t i = 0; i < count; ++i) {
            ShapeText shape = "N";
            for (std::uint64_t axes = random_() % 6; axes > 0; --axes) {
                shape += chance(3) ? " H" : " " + std::to_string(std::abs(one_of(numbers_) / 2));
            }
            inputs.push_back(shape);
        }
        infer_shapes(plugin, inputs);
    }

    static constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
    std::vector<std::int32_t> const numbers_{0,  1,     2,       3,         5,     64,        46341,
                                             -1, 65536, 1 << 29, kMost - 1, kMost, -kMost - 1};
    std::vector<std::int32_t> const counts_{-1, 0, 1, 3, 1 << 20, kMost};
    std::vector<std::int32_t> const lengths_{0, 1, 2, 3, 15, 16, 17, kMost, -1, -kMost - 1};
    std::vector<float> const reals_{
        0.0f,
        1.0f,
        -1.0f,
        2.0f,
        std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()};
    std::vector<PluginFieldType> const types_{
        PluginFieldType::kINT32, PluginFieldType::kFLOAT32, PluginFieldType::kCHAR,
        PluginFieldType::kINT64, PluginFieldType::kUNKNOWN, static_cast<PluginFieldType>(77)};
    std::mt19937_64 random_;
    std::vector<std::unique_ptr<std::int32_t[]>> storage_;
    std::vector<std::unique_ptr<std::string>> names_;
};

int run(double seconds, std::uint64_t seed) {
    auto const begun = std::chrono::steady_clock::now();
    int broken = 0;
    do {
        std::printf("case %llu\n", static_cast<unsigned long long>(seed));
        std::fflush(stdout);
        Attacker attacker(seed++);
        int taken = 0;
        bool all_sound = true;
        for (int list = 0; list < kListsOfASeed; ++list) {
            bool sound = true;
            taken += attacker.attack(sound) ? 1 : 0;
            all_sound = all_sound && sound;
        }
        if (all_sound) {
            std::printf("outcome %d taken\noutcome %d refused\n", taken, kListsOfASeed - taken);
        } else {
            std::printf("broken a plugin does not come back from its own fields\n");
            broken = 1;
        }
        // What the creators have said so far need not be kept, if it goes to a file.
        if (ftruncate(STDERR_FILENO, 0) == 0) lseek(STDERR_FILENO, 0, SEEK_SET);
    } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() <
             seconds);
    return broken;
}

}  // namespace
}  // namespace carafe::testing

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: fuzz_creators SECONDS SEED\n");
        return 2;
    }
    return carafe::testing::run(std::atof(arguments[1]), std::strtoull(arguments[2], nullptr, 10));
}
