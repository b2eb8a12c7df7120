// Detects objects in an image with an exported ONNX file, and prints them as JSON.
//
//     detect MODEL.onnx IMAGE.ppm [THRESHOLD]
//
// Size, classes and letterboxing are read from the file. It was exported with `export.layout=tao` (the default), with or
// without `export.include_postprocess`. The image is a binary PPM (P6), to keep the example free of image libraries;
// `convert image.jpg image.ppm` writes one. Only onnxruntime is required.

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> pixels;  // RGB, row by row

  Image(int width, int height) : width(width), height(height), pixels(size_t(3) * width * height) {}
  uint8_t& at(int x, int y, int channel) { return pixels[3 * (size_t(y) * width + x) + channel]; }
  uint8_t at(int x, int y, int channel) const { return pixels[3 * (size_t(y) * width + x) + channel]; }
};

struct Detection {
  std::array<float, 4> box;  // x1, y1, x2, y2 in pixels of the image
  float score;
  int label;
};

struct Model {
  std::map<int, std::string> names;
  int height = 0, width = 0;
  bool letterbox = false;
};

// Reading

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  std::string magic;
  file >> magic;
  if (magic != "P6") throw std::runtime_error(path + " is not a binary PPM image (P6)");
  int numbers[3];  // width, height, largest value
  for (int& number : numbers) {
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 16, '\n');
    if (!(file >> number)) throw std::runtime_error(path + " has a corrupted header");
  }
  file.get();  // one character of white space before the pixels
  if (numbers[2] != 255 || numbers[0] < 1 || numbers[1] < 1 || int64_t(numbers[0]) * numbers[1] > 120000000)
    throw std::runtime_error(path + ": expected 8 bits per channel and at most 120 million pixels");
  Image image(numbers[0], numbers[1]);
  if (!file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size())))
    throw std::runtime_error(path + " is truncated");
  return image;
}

void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += char(code);
  } else if (code < 0x800) {
    text += {char(0xC0 | code >> 6), char(0x80 | (code & 0x3F))};
  } else if (code < 0x10000) {
    text += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F))};
  } else {
    text += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 0x3F)), char(0x80 | (code >> 6 & 0x3F)),
             char(0x80 | (code & 0x3F))};
  }
}

// The JSON string that begins at `position` (a quote), and the position after it.
std::string json_string(const std::string& text, size_t& position) {
  std::string result;
  auto unit = [&] {
    uint32_t code = uint32_t(std::stoul(text.substr(position + 1, 4), nullptr, 16));
    position += 4;
    return code;
  };
  for (++position; position < text.size() && text[position] != '"'; ++position) {
    if (text[position] != '\\') {
      result += text[position];
      continue;
    }
    char escaped = text.at(++position);
    if (escaped == 'u') {
      uint32_t code = unit();
      if (code >= 0xD800 && code < 0xDC00 && text.compare(position + 1, 2, "\\u") == 0) {  // a surrogate pair
        position += 2;
        code = 0x10000 + ((code - 0xD800) << 10) + (unit() - 0xDC00);
      }
      append_utf8(result, code);
    } else {
      const std::string letters = "bfnrt", meaning = "\b\f\n\r\t";
      size_t index = letters.find(escaped);
      result += index == std::string::npos ? escaped : meaning[index];
    }
  }
  ++position;
  return result;
}

// {"0": "cat", "1": "dog"} -> names by class index
std::map<int, std::string> parse_names(const std::string& text) {
  std::map<int, std::string> names;
  for (size_t position = text.find('"'); position != std::string::npos; position = text.find('"', position)) {
    int index = std::stoi(json_string(text, position));
    position = text.find('"', position);
    names[index] = json_string(text, position);
  }
  return names;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (uint8_t(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      result += escaped;
    } else {
      result += c;
    }
  }
  return result + '"';
}

Model read_model(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::ModelMetadata metadata = session.GetModelMetadata();
  auto value = [&](const char* key) {
    auto text = metadata.LookupCustomMetadataMapAllocated(key, allocator);
    return text ? std::string(text.get()) : std::string();
  };
  Model model;
  model.names = parse_names(value("names"));
  model.letterbox = value("preserve_aspect_ratio") == "true";
  std::string input = session.GetInputNameAllocated(0, allocator).get();
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  if (input != "inputs" || shape.size() != 4 || shape[0] > 1 || shape[1] != 3 || shape[2] < 1 || shape[3] < 1)
    throw std::runtime_error("expected an input `inputs` [batch or 1, 3, height, width] (export.layout=tao)");
  model.height = int(shape[2]);
  model.width = int(shape[3]);
  return model;
}

// Resizing: bilinear with antialiasing, in fixed point as in Pillow, so that pixels are equal to Python's

struct Taps {
  int first = 0;
  std::vector<int> weights;  // times 2^22
};

std::vector<Taps> taps_of(int from, int to) {
  const double scale = double(from) / to, support = std::max(scale, 1.0);
  std::vector<Taps> all(to);
  for (int index = 0; index < to; ++index) {
    const double center = (index + 0.5) * scale;
    const int first = std::max(0, int(center - support + 0.5)), last = std::min(from, int(center + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int position = first; position < last; ++position) {
      weights.push_back(std::max(0.0, 1.0 - std::abs((position - center + 0.5) / support)));
      sum += weights.back();
    }
    all[index].first = first;
    for (double weight : weights) all[index].weights.push_back(int(0.5 + weight / sum * (1 << 22)));
  }
  return all;
}

uint8_t rounded(int64_t sum) { return uint8_t(std::clamp<int64_t>((sum + (1 << 21)) >> 22, 0, 255)); }

Image resize(const Image& image, int width, int height) {
  Image wide(width, image.height), result(width, height);
  const auto columns = taps_of(image.width, width), rows = taps_of(image.height, height);
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < width; ++x)
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = 0;
        for (size_t k = 0; k < columns[x].weights.size(); ++k)
          sum += int64_t(columns[x].weights[k]) * image.at(columns[x].first + int(k), y, channel);
        wide.at(x, y, channel) = rounded(sum);
      }
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = 0;
        for (size_t k = 0; k < rows[y].weights.size(); ++k)
          sum += int64_t(rows[y].weights[k]) * wide.at(x, rows[y].first + int(k), channel);
        result.at(x, y, channel) = rounded(sum);
      }
  return result;
}

// Detection

struct Prepared {
  std::vector<float> input;  // [3, height, width] 0..1
  float scale_x, scale_y;    // relative coordinates -> pixels of the image
};

Prepared prepare(const Image& image, const Model& model) {
  int width = model.width, height = model.height;
  if (model.letterbox) {  // scaled to fit, padded with black on the right or bottom
    const int side = std::max(width, height), longest = std::max(image.width, image.height);
    width = std::max(1, int(std::nearbyint(double(image.width) * side / longest)));
    height = std::max(1, int(std::nearbyint(double(image.height) * side / longest)));
  }
  const Image resized = resize(image, width, height);
  Prepared prepared{std::vector<float>(size_t(3) * model.width * model.height), 0, 0};
  for (int channel = 0; channel < 3; ++channel)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        prepared.input[(size_t(channel) * model.height + y) * model.width + x] = resized.at(x, y, channel) / 255.0f;
  prepared.scale_x = float(double(model.width) * image.width / width);
  prepared.scale_y = float(double(model.height) * image.height / height);
  return prepared;
}

std::vector<Detection> detect(Ort::Session& session, const Model& model, const Image& image, float threshold) {
  Prepared prepared = prepare(image, model);
  const std::array<int64_t, 4> shape{1, 3, model.height, model.width};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, prepared.input.data(), prepared.input.size(), shape.data(), 4);
  const char* inputs[] = {"inputs"};

  Ort::AllocatorWithDefaultOptions allocator;
  bool postprocessed = false;
  for (size_t index = 0; index < session.GetOutputCount(); ++index)
    postprocessed |= std::string(session.GetOutputNameAllocated(index, allocator).get()) == "scores";

  std::vector<Detection> found;
  auto add = [&](float x1, float y1, float x2, float y2, float score, int label) {  // corners relative to the input
    auto pixel = [](float value, float scale, int limit) { return std::clamp(value * scale, 0.0f, float(limit)); };
    if (score >= threshold && (model.names.empty() || model.names.count(label)))  // other outputs are unused
      found.push_back({{pixel(x1, prepared.scale_x, image.width), pixel(y1, prepared.scale_y, image.height),
                        pixel(x2, prepared.scale_x, image.width), pixel(y2, prepared.scale_y, image.height)},
                       score, label});
  };
  if (postprocessed) {
    const char* names[] = {"boxes", "scores", "labels"};
    auto outputs = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, names, 3);
    const float *boxes = outputs[0].GetTensorData<float>(), *scores = outputs[1].GetTensorData<float>();
    const int32_t* labels = outputs[2].GetTensorData<int32_t>();
    const int64_t count = outputs[1].GetTensorTypeAndShapeInfo().GetShape()[1];
    const float width = float(model.width), height = float(model.height);
    for (int64_t k = 0; k < count; ++k, boxes += 4)
      add(boxes[0] / width, boxes[1] / height, boxes[2] / width, boxes[3] / height, scores[k], labels[k]);
  } else {
    const char* names[] = {"pred_logits", "pred_boxes"};
    auto outputs = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, names, 2);
    const float *logits = outputs[0].GetTensorData<float>(), *boxes = outputs[1].GetTensorData<float>();
    const auto sizes = outputs[0].GetTensorTypeAndShapeInfo().GetShape();  // 1, queries, classes
    for (int64_t query = 0; query < sizes[1]; ++query, boxes += 4)
      for (int label = 0; label < sizes[2]; ++label) {
        const float score = 1 / (1 + std::exp(-logits[query * sizes[2] + label])), w = boxes[2] / 2, h = boxes[3] / 2;
        add(boxes[0] - w, boxes[1] - h, boxes[0] + w, boxes[1] + h, score, label);
      }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  return found;
}

void print_json(const Image& image, const Model& model, const std::vector<Detection>& detections) {
  std::printf("{\"width\": %d, \"height\": %d, \"detections\": [", image.width, image.height);
  const char* separator = "";
  for (const Detection& one : detections) {
    const auto name = model.names.find(one.label);
    const std::string shown = name == model.names.end() ? "null" : quoted(name->second);
    std::printf("%s\n  {\"label\": %d, \"name\": %s, \"score\": %.7f, \"box\": [%.4f, %.4f, %.4f, %.4f]}", separator,
                one.label, shown.c_str(), one.score, one.box[0], one.box[1], one.box[2], one.box[3]);
    separator = ",";
  }
  std::printf("\n]}\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3 || count > 4) {
    std::cerr << "usage: detect MODEL.onnx IMAGE.ppm [THRESHOLD]\n";
    return 2;
  }
  try {
    const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!api) throw std::runtime_error("this libonnxruntime is older than the headers the program was built with");
    Ort::InitApi(api);
    const float threshold = count == 4 ? std::stof(arguments[3]) : 0.5f;
    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "detect");
    Ort::Session session(environment, arguments[1], Ort::SessionOptions{});
    const Model model = read_model(session);
    const Image image = read_ppm(arguments[2]);
    print_json(image, model, detect(session, model, image, threshold));
  } catch (const std::exception& error) {
    std::cerr << "Error: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
