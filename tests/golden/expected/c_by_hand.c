#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

void by_hand(
    const double (*restrict A)[100],
    const int64_t *restrict pick,
    double *restrict x,
    double *restrict low,
    double *restrict high
) {
    enum { N = 100 };
    double w;
    double v;
    for (int64_t i = 0; i < N; i++) {
        w = x[i];
        for (int64_t j = 0; j < i; j++) {
            w -= A[i][j] * x[pick[j]];
        }
        v = w / A[i][i];
        x[i] = v + 1.0;
        {
            double value0 = x[i] * 0.5;
            double value1 = x[i] * 2.0;
            low[i] = value0;
            high[i] = value1;
        }
    }
}
