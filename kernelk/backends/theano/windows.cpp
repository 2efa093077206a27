#include <algorithm>
#include <limits>
#include <vector>

namespace {

// So many windows are laid out at once, if their elements stay in a core's cache and not just one line of them does.
const npy_intp ROWS = 512, PATCH_BYTES = 1 << 21;

void gemm(char* ta, char* tb, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float beta,
          float* c, int ldc) {
    float one = 1;
    sgemm_(ta, tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

void gemm(char* ta, char* tb, int m, int n, int k, const double* a, int lda, const double* b, int ldb, double beta,
          double* c, int ldc) {
    double one = 1;
    dgemm_(ta, tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

char PLAIN[] = "N", TURNED[] = "T";

// How windows lie along three spatial axes, of which the first ones may be of length 1 for the op's own lack of them.
struct Windows {
    npy_intp n[3], made[3], size[3], stride[3], before[3], apart[3];
    npy_intp batch, channels, lines, places;

    // `given`: strides, padding before, padding after, dilation, each by spatial axis.
    Windows(const npy_int64* given, int spatial, npy_intp batch_, const npy_intp* lengths, const npy_intp* sizes,
            npy_intp channels_) {
        batch = batch_;
        channels = channels_;
        for (int i = 0; i < 3; i++) {
            int j = i - (3 - spatial);
            n[i] = j < 0 ? 1 : lengths[j];
            size[i] = j < 0 ? 1 : sizes[j];
            stride[i] = j < 0 ? 1 : given[j];
            before[i] = j < 0 ? 0 : given[spatial + j];
            npy_intp after = j < 0 ? 0 : given[2 * spatial + j];
            apart[i] = j < 0 ? 1 : given[3 * spatial + j];
            made[i] = (n[i] + before[i] + after - (size[i] - 1) * apart[i] - 1) / stride[i] + 1;
            whole = (i ? whole : true) && size[i] == 1 && stride[i] == 1 && made[i] == n[i];
        }
        lines = batch * made[0] * made[1];
        places = size[0] * size[1] * size[2];
    }

    // Whether a window is one element, and all elements have one: then the windows' matrix is the array itself.
    bool whole;

    // Whether an array has these windows' lengths, batch axis included.
    bool made_as(PyArrayObject* x, int spatial) const {
        bool same = PyArray_DIMS(x)[0] == batch;
        for (int j = 0; j < spatial; j++) same = same && PyArray_DIMS(x)[1 + j] == made[3 - spatial + j];
        return same;
    }

    npy_intp elements() const { return batch * n[0] * n[1] * n[2] * channels; }

    // How many lines of windows are laid out at once.
    npy_intp together(npy_intp bytes) const {
        npy_intp most = PATCH_BYTES / (places * channels * bytes + 1);
        npy_intp count = (most < ROWS ? most : ROWS) / (made[2] + !made[2]);
        return count < 1 ? 1 : count > lines ? lines : count;
    }

    // The first element of a row of a window of a line; NULL where it is padding. Rows count over two axes.
    template <class T> T* row(T* x, npy_intp line, npy_intp a, npy_intp b) const {
        npy_intp sample = line / (made[0] * made[1]), rest = line % (made[0] * made[1]);
        npy_intp i = rest / made[1] * stride[0] + a * apart[0] - before[0];
        npy_intp j = rest % made[1] * stride[1] + b * apart[1] - before[1];
        if (i < 0 || i >= n[0] || j < 0 || j >= n[1]) return NULL;
        return x + ((sample * n[0] + i) * n[1] + j) * n[2] * channels;
    }
};

// Two moves that overlap: a loop, or a call of memcpy, takes longer than what it copies here.
template <int N> inline void ends(char* to, const char* from, npy_intp bytes) {
    char first[N], last[N];
    memcpy(first, from, N);
    memcpy(last, from + bytes - N, N);
    memcpy(to, first, N);
    memcpy(to + bytes - N, last, N);
}

template <class T> inline void copy(T* into, const T* source, npy_intp count) {
    npy_intp bytes = count * sizeof(T);
    char* to = (char*)into;
    const char* from = (const char*)source;
    if (bytes > 128) memcpy(to, from, bytes);
    else if (bytes >= 64) ends<64>(to, from, bytes);
    else if (bytes >= 32) ends<32>(to, from, bytes);
    else if (bytes >= 16) ends<16>(to, from, bytes);
    else if (bytes >= 8) ends<8>(to, from, bytes);
    else if (bytes) ends<4>(to, from, bytes);
}

template <class T> inline void clear(T* to, npy_intp count) {
    for (npy_intp i = 0; i < count; i++) to[i] = 0;
}

// Lays the windows of a line out as rows of a matrix.
template <class T> void lay_out(const Windows& w, const T* x, npy_intp line, T* rows) {
    npy_intp channels = w.channels, run = w.size[2] * channels, width = w.places * channels;
    for (npy_intp a = 0, at = 0; a < w.size[0]; a++)
        for (npy_intp b = 0; b < w.size[1]; b++, at += run) {
            const T* row = w.row(x, line, a, b);
            T* to = rows + at;
            for (npy_intp k = 0; k < w.made[2]; k++, to += width) {
                if (!row) {
                    clear(to, run);
                    continue;
                }
                npy_intp first = k * w.stride[2] - w.before[2];
                if (w.apart[2] == 1 && first >= 0 && first + w.size[2] <= w.n[2]) {
                    copy(to, row + first * channels, run);
                    continue;
                }
                for (npy_intp c = 0; c < w.size[2]; c++) {
                    npy_intp place = first + c * w.apart[2];
                    if (place < 0 || place >= w.n[2]) clear(to + c * channels, channels);
                    else copy(to + c * channels, row + place * channels, channels);
                }
            }
        }
}

// The reverse: adds the rows of a matrix to where their elements came from.
template <class T> void put_back(const Windows& w, T* x, npy_intp line, const T* rows) {
    npy_intp channels = w.channels, run = w.size[2] * channels, width = w.places * channels;
    for (npy_intp a = 0, at = 0; a < w.size[0]; a++)
        for (npy_intp b = 0; b < w.size[1]; b++, at += run) {
            T* row = w.row(x, line, a, b);
            if (!row) continue;
            const T* from = rows + at;
            for (npy_intp k = 0; k < w.made[2]; k++, from += width) {
                npy_intp first = k * w.stride[2] - w.before[2];
                if (w.apart[2] == 1 && first >= 0 && first + w.size[2] <= w.n[2]) {
                    T* to = row + first * channels;
                    for (npy_intp e = 0; e < run; e++) to[e] += from[e];
                    continue;
                }
                for (npy_intp c = 0; c < w.size[2]; c++) {
                    npy_intp place = first + c * w.apart[2];
                    if (place < 0 || place >= w.n[2]) continue;
                    T* to = row + place * channels;
                    for (npy_intp e = 0; e < channels; e++) to[e] += from[c * channels + e];
                }
            }
        }
}

template <class T> void conv(const Windows& w, const T* x, const T* kernel, npy_intp filters, T* y) {
    npy_intp width = w.places * w.channels, step = w.together(sizeof(T));
    if (!width) clear(y, w.lines * w.made[2] * filters);
    if (!width || !filters || !w.made[2]) return;
    std::vector<T> space(w.whole ? 0 : step * w.made[2] * width);
    for (npy_intp line = 0; line < w.lines; line += step) {
        npy_intp count = line + step > w.lines ? w.lines - line : step;
        const T* rows = w.whole ? x + line * w.made[2] * width : space.data();
        for (npy_intp i = 0; i < count && !w.whole; i++)
            lay_out(w, x, line + i, space.data() + i * w.made[2] * width);
        gemm(PLAIN, PLAIN, filters, count * w.made[2], width, kernel, filters, rows, width, T(0),
             y + line * w.made[2] * filters, filters);
    }
}

template <class T> void conv_input(const Windows& w, const T* g, const T* kernel, npy_intp filters, T* y) {
    npy_intp width = w.places * w.channels, step = w.together(sizeof(T));
    if (!w.whole || !filters) clear(y, w.elements());
    if (!width || !filters || !w.made[2]) return;
    std::vector<T> space(w.whole ? 0 : step * w.made[2] * width);
    for (npy_intp line = 0; line < w.lines; line += step) {
        npy_intp count = line + step > w.lines ? w.lines - line : step;
        T* rows = w.whole ? y + line * w.made[2] * width : space.data();
        gemm(TURNED, PLAIN, width, count * w.made[2], filters, kernel, filters, g + line * w.made[2] * filters,
             filters, T(0), rows, width);
        for (npy_intp i = 0; i < count && !w.whole; i++)
            put_back(w, y, line + i, space.data() + i * w.made[2] * width);
    }
}

template <class T> void conv_kernel(const Windows& w, const T* x, const T* g, npy_intp filters, T* y) {
    npy_intp width = w.places * w.channels, step = w.together(sizeof(T));
    clear(y, width * filters);
    if (!width || !filters || !w.made[2]) return;
    std::vector<T> space(w.whole ? 0 : step * w.made[2] * width);
    for (npy_intp line = 0; line < w.lines; line += step) {
        npy_intp count = line + step > w.lines ? w.lines - line : step;
        const T* rows = w.whole ? x + line * w.made[2] * width : space.data();
        for (npy_intp i = 0; i < count && !w.whole; i++)
            lay_out(w, x, line + i, space.data() + i * w.made[2] * width);
        gemm(PLAIN, TURNED, filters, width, count * w.made[2], g + line * w.made[2] * filters, filters, rows, width,
             T(1), y, filters);
    }
}

// Pooling: first over the rows of a line of windows, whose elements are neighbours, into one row with its padding; then
// along that row.
struct Line {
    npy_intp around, elements;
    std::vector<int> start;  // of each result of a line: the first element of its window in the row

    Line(const Windows& w) {
        npy_intp length = (w.made[2] - 1) * w.stride[2] + w.size[2];
        around = (length > w.before[2] + w.n[2] ? length : w.before[2] + w.n[2]) * w.channels;
        elements = w.made[2] * w.channels;
        for (npy_intp k = 0; k < w.made[2]; k++)
            for (npy_intp c = 0; c < w.channels; c++) start.push_back(k * w.stride[2] * w.channels + c);
    }
};

template <class T> void max_pool(const Windows& w, const T* x, T* y) {
    Line along(w);
    const T least = -std::numeric_limits<T>::infinity();
    std::vector<T> row(along.around);
    const npy_intp inner = w.n[2] * w.channels;
    const int* start = along.start.data();
    for (npy_intp line = 0; line < w.lines; line++, y += along.elements) {
        std::fill(row.begin(), row.end(), least);
        T* __restrict__ best = row.data() + w.before[2] * w.channels;
        for (npy_intp a = 0; a < w.size[0] * w.size[1]; a++) {
            const T* __restrict__ v = w.row(x, line, a / w.size[1], a % w.size[1]);
            // A NaN wins.
            for (npy_intp e = 0; v && e < inner; e++) best[e] = (v[e] > best[e]) | (v[e] != v[e]) ? v[e] : best[e];
        }
        for (npy_intp c = 0; c < w.size[2]; c++) {
            const T* __restrict__ v = row.data() + c * w.channels;
            T* __restrict__ to = y;
            for (npy_intp e = 0; e < along.elements; e++) {
                T now = v[start[e]], old = c ? to[e] : least;
                to[e] = (now > old) | (now != now) ? now : old;
            }
        }
    }
}

// The gradient goes to the first of equals, and of a window with a NaN nowhere.
template <class T> void max_pool_grad(const Windows& w, const T* x, const T* g, T* y) {
    Line along(w);
    const T least = -std::numeric_limits<T>::infinity();
    const int nowhere = std::numeric_limits<int>::max();
    const npy_intp inner = w.n[2] * w.channels;
    const int* start = along.start.data();
    std::vector<T> row(along.around), largest(along.elements);
    std::vector<int> rows(along.around), places(along.elements), within(along.elements);
    std::vector<T*> given(w.size[0] * w.size[1]);
    clear(y, w.elements());
    for (npy_intp line = 0; line < w.lines; line++, g += along.elements) {
        std::fill(row.begin(), row.end(), least);
        std::fill(rows.begin(), rows.end(), nowhere);
        T* __restrict__ best = row.data() + w.before[2] * w.channels;
        int* __restrict__ of = rows.data() + w.before[2] * w.channels;
        for (npy_intp a = 0; a < w.size[0] * w.size[1]; a++) {
            const T* __restrict__ v = w.row(x, line, a / w.size[1], a % w.size[1]);
            const int number = a;
            given[a] = w.row(y, line, a / w.size[1], a % w.size[1]);
            for (npy_intp e = 0; v && e < inner; e++) {
                // Nothing compares with a NaN any more.
                bool lost = v[e] != v[e], wins = (v[e] > best[e]) | ((v[e] == best[e]) & (of[e] == nowhere));
                best[e] = wins | lost ? v[e] : best[e];
                of[e] = lost ? nowhere : wins ? number : of[e];
            }
        }
        for (npy_intp c = 0; c < w.size[2]; c++) {
            const T* __restrict__ v = row.data() + c * w.channels;
            const int* __restrict__ from = rows.data() + c * w.channels;
            T* __restrict__ best = largest.data();
            int *__restrict__ of = places.data(), *__restrict__ at = within.data();
            const int number = c;
            for (npy_intp e = 0; e < along.elements; e++) {
                T now = v[start[e]], old = c ? best[e] : least;
                int whose = from[start[e]], before = c ? of[e] : nowhere;
                bool lost = now != now, wins = (now > old) | ((now == old) & (whose < before));
                best[e] = wins | lost ? now : old;
                of[e] = lost ? nowhere : wins ? whose : before;
                at[e] = wins ? number : c ? at[e] : 0;
            }
        }
        for (npy_intp e = 0; e < along.elements; e++) {
            if (places[e] != nowhere) given[places[e]][start[e] + (within[e] - w.before[2]) * w.channels] += g[e];
        }
    }
}

// How many elements each window along the last axis has, padding left out.
std::vector<npy_intp> counts(const Windows& w) {
    std::vector<npy_intp> found;
    for (npy_intp k = 0; k < w.made[2]; k++) {
        npy_intp first = k * w.stride[2] - w.before[2], end = first + w.size[2];
        first = first < 0 ? 0 : first;
        end = end > w.n[2] ? w.n[2] : end;
        found.insert(found.end(), w.channels, end > first ? end - first : 0);
    }
    return found;
}

template <class T> void avg_pool(const Windows& w, const T* x, T* y) {
    Line along(w);
    const npy_intp inner = w.n[2] * w.channels;
    const int* start = along.start.data();
    std::vector<npy_intp> count = counts(w);
    std::vector<T> row(along.around);
    for (npy_intp line = 0; line < w.lines; line++, y += along.elements) {
        std::fill(row.begin(), row.end(), T(0));
        T* __restrict__ sum = row.data() + w.before[2] * w.channels;
        npy_intp rows = 0;
        for (npy_intp a = 0; a < w.size[0] * w.size[1]; a++) {
            const T* __restrict__ v = w.row(x, line, a / w.size[1], a % w.size[1]);
            rows += v != NULL;
            for (npy_intp e = 0; v && e < inner; e++) sum[e] += v[e];
        }
        T* __restrict__ to = y;
        for (npy_intp c = 0; c < w.size[2]; c++) {
            const T* __restrict__ v = row.data() + c * w.channels;
            for (npy_intp e = 0; e < along.elements; e++) to[e] = v[start[e]] + (c ? to[e] : T(0));
        }
        for (npy_intp e = 0; e < along.elements; e++) to[e] /= T(rows * count[e]);
    }
}

template <class T> void avg_pool_grad(const Windows& w, const T* g, T* y) {
    Line along(w);
    const npy_intp inner = w.n[2] * w.channels;
    const int* start = along.start.data();
    std::vector<npy_intp> count = counts(w);
    std::vector<T> row(along.around), shares(along.elements);
    clear(y, w.elements());
    for (npy_intp line = 0; line < w.lines; line++, g += along.elements) {
        std::fill(row.begin(), row.end(), T(0));
        npy_intp rows = 0;
        for (npy_intp a = 0; a < w.size[0] * w.size[1]; a++)
            rows += w.row(y, line, a / w.size[1], a % w.size[1]) != NULL;
        for (npy_intp e = 0; e < along.elements; e++) shares[e] = g[e] / T(rows * count[e]);
        for (npy_intp c = 0; c < w.size[2]; c++)
            for (npy_intp e = 0; e < along.elements; e++) row[start[e] + c * w.channels] += shares[e];
        const T* __restrict__ sum = row.data() + w.before[2] * w.channels;
        for (npy_intp a = 0; a < w.size[0] * w.size[1]; a++) {
            T* __restrict__ to = w.row(y, line, a / w.size[1], a % w.size[1]);
            for (npy_intp e = 0; to && e < inner; e++) to[e] += sum[e];
        }
    }
}

// An array of these lengths: the one that is there, if it fits.
PyArrayObject* room(PyArrayObject* old, const std::vector<npy_intp>& lengths, int type) {
    if (old && PyArray_NDIM(old) == (int)lengths.size() && PyArray_ISCARRAY(old)) {
        bool fits = true;
        for (size_t i = 0; i < lengths.size(); i++) fits = fits && PyArray_DIMS(old)[i] == lengths[i];
        if (fits) return old;
    }
    Py_XDECREF(old);
    return (PyArrayObject*)PyArray_EMPTY(lengths.size(), (npy_intp*)lengths.data(), type, 0);
}

}
