// fanload: N followers and c publishers on one epoll thread; counts deliveries, their latency, and the
// server's CPU.
//
//   fanload -m sse|redis|nats -p PORT -s SUBSCRIBE_PATH -u PUBLISH_PATH -n FOLLOWERS -c PUBLISHERS -P PID,PID
//           [-w WINDOW] [-d SECONDS | -M MESSAGES] [-b BODY_BYTES] [-i IDLE_S] [-S SLOW_FOLLOWERS]
//
// -c 1 -w 1: one message at a time, the next when every follower has the last (nothing can be coalesced).
// -c 16 -w 64: saturation, with at most 64 messages ahead of what followers have on average.
// A message is JSON, and holds "~" and the time of its sending in 16 hex digits: each "~" received is a
// delivery, so a server must not send one by itself. -i: seconds to sit idle, connected, before the memory is
// read. -S: so many more followers (SSE only) that read nothing until all others have everything; what they
// get then is counted apart.
//
// One JSON line out: del_s deliveries/s; cpu_us CPU of the PIDs per delivery in us (schedstat, so precise);
// ok: 1 when every delivery arrived and no publish was refused; p50_us p99_us max_us latency from sending to
// delivery; rss_per_conn_b memory per idle follower in bytes; rss0_kb rss_idle_kb rss_end_kb the server's
// memory before any connection, with all of them idle, and at the end; load_cpu the share of a core that this
// program used; slow_received deliveries to the slow followers.
#include "common.h"
#include <signal.h>
#include <sys/resource.h>

enum { SSE, REDIS, NATS };
enum { BODY_MAX = 65536, STALL_S = 4, RUN_S_MAX = 90 };
static int mode = SSE, N = 1000, C = 1, S = 0, window = 64, body_bytes = 100, port;
static uint64_t messages; // 0: as many as fit into the duration
static double seconds = 3, idle_s = 0.3;
static const char *sub_path = "/sub/t", *pub_path = "/pub/t", *pids = "";

// rb, rl: bytes kept of an incomplete reply. need, acc: hex digits of a time that is cut by the end of a
// read.
typedef struct {
  int fd, rl;
  uint8_t publisher, said_hello, ready, need, busy;
  uint64_t acc;
  char *rb;
} conn;
static int ep, nready;
static uint64_t received, published, refused;
static conn *pubs;
static char buf[1 << 18];

// A histogram of microseconds, linear within each power of two (64 steps, so 1.6 % wide).
#define STEPS 64
static uint64_t hist[64 * STEPS], hist_n, hist_max;
static inline void hist_add(uint64_t ns) {
  uint64_t us = ns / 1000;
  if (us > hist_max) hist_max = us;
  int shift = us < STEPS ? 0 : 63 - __builtin_clzll(us) - 6;
  hist[us < STEPS ? us : (shift + 1) * STEPS + ((us >> shift) - STEPS)]++;
  hist_n++;
}
static double hist_quantile(double q) {
  uint64_t want = (uint64_t)(q * hist_n), sum = 0;
  for (int b = 0; b < 64 * STEPS; b++)
    if ((sum += hist[b]) > want)
      return b < STEPS ? b : (double)((uint64_t)(b % STEPS + STEPS) << (b / STEPS - 1));
  return hist_max;
}

static void open_conn(conn *c, uint32_t events) {
  int one = 1;
  struct linger reset = {1, 0}; // closing leaves no TIME_WAIT behind for the next run
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) {
    perror("socket");
    exit(1);
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (connect(c->fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) {
    perror("connect");
    exit(1);
  }
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

static void hello(conn *c) {
  static const char *nats =
      "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"c\",\"version\":\"1\"}\r\n";
  int n = 0;
  char r[700];
  if (mode == NATS)
    n = snprintf(r, sizeof r, "%s%sPING\r\n", nats, c->publisher ? "" : "SUB t 1\r\n");
  else if (!c->publisher && mode == SSE)
    n = snprintf(r, sizeof r, "GET %s HTTP/1.1\r\nHost: l\r\nAccept: text/event-stream\r\n\r\n", sub_path);
  else if (!c->publisher)
    n = snprintf(r, sizeof r, "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nt\r\n");
  if (n) send_all(c->fd, r, n);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
  c->said_hello = 1;
  if (!n) {
    c->ready = 1;
    nready++;
  }
}

static inline int hex(char ch) {
  return ch <= '9' ? ch - '0' : ch - 'a' + 10;
}

static void follower_read(conn *c) {
  ssize_t n = recv(c->fd, buf, sizeof buf, 0);
  if (n <= 0) {
    if (n < 0 && errno == EAGAIN) return;
    fprintf(stderr, "follower closed by server\n");
    epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0);
    return;
  }
  char *p = buf, *end = buf + n;
  if (!c->ready) {
    const char *mark = mode == SSE ? "\r\n\r\n" : mode == REDIS ? "\r\n:1\r\n" : "PONG\r\n";
    enum { HEAD_MAX = 8192 };
    if (!c->rb) c->rb = malloc(HEAD_MAX);
    if (c->rl + n > HEAD_MAX) {
      fprintf(stderr, "reply head too long\n");
      exit(1);
    }
    memcpy(c->rb + c->rl, buf, n);
    c->rl += n;
    char *f = memmem(c->rb, c->rl, mark, strlen(mark));
    if (!f) return;
    if (mode == SSE && memcmp(c->rb, "HTTP/1.1 200", 12)) {
      fprintf(stderr, "refused: %.*s\n", c->rl, c->rb);
      exit(1);
    }
    f += strlen(mark);
    end = buf + (c->rb + c->rl - f);
    memcpy(buf, f, end - buf);
    free(c->rb);
    c->rb = 0;
    c->ready = 1;
    nready++;
  }
  for (uint64_t t = 0; p < end;) {
    if (c->need)
      c->acc = c->acc << 4 | hex(*p++), c->need--;
    else {
      if (!(p = memchr(p, '~', end - p))) break;
      p++;
      c->acc = 0;
      c->need = 16;
      if (end - p >= 16)
        for (; c->need; c->need--) c->acc = c->acc << 4 | hex(*p++);
    }
    if (c->need) continue;
    if (!t) t = now();
    hist_add(t - c->acc);
    received++;
  }
}

static void publish(conn *c) {
  static char r[BODY_MAX + 1000], body[BODY_MAX + 200];
  int n, k = snprintf(body, 200, "{\"t\":\"~%016llx\",\"s\":%llu,\"x\":\"", (unsigned long long)now(),
                      (unsigned long long)published);
  while (k < body_bytes - 2) body[k++] = 'x';
  body[k++] = '"';
  body[k++] = '}';
  if (mode == SSE)
    n = snprintf(
        r, 900, "POST %s HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
        pub_path, k);
  else if (mode == REDIS)
    n = snprintf(r, 900, "*3\r\n$7\r\nPUBLISH\r\n$1\r\nt\r\n$%d\r\n", k);
  else
    n = snprintf(r, 900, "PUB t %d\r\n", k);
  memcpy(r + n, body, k);
  n += k;
  if (mode != SSE) {
    r[n++] = '\r';
    r[n++] = '\n';
  }
  send_all(c->fd, r, n);
  published++;
  c->busy = mode != NATS; // core NATS does not acknowledge
}

static void publisher_read(conn *c) {
  enum { REPLY_MAX = 65536 };
  if (!c->rb) c->rb = malloc(REPLY_MAX);
  ssize_t n = recv(c->fd, c->rb + c->rl, REPLY_MAX - 1 - c->rl, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    fprintf(stderr, "publisher closed by server\n");
    exit(1);
  }
  c->rl += n;
  c->rb[c->rl] = 0;
  if (mode == NATS) {
    if (strstr(c->rb, "PING\r\n")) send_all(c->fd, "PONG\r\n", 6);
    if (!c->ready && strstr(c->rb, "PONG\r\n")) {
      c->ready = 1;
      nready++;
    }
    c->rl = 0;
  } else if (mode == REDIS) {
    if (!memchr(c->rb, '\n', c->rl)) return;
    if (c->rb[0] != ':') refused++;
    c->rl = c->busy = 0;
  } else {
    http_head h;
    int head = parse_head(c->rb, &h);
    if (!head || (h.body < 0 ? !strstr(c->rb + head - 2, "\r\n0\r\n\r\n") : c->rl < head + h.body)) return;
    if (h.status / 100 != 2 && !refused++) fprintf(stderr, "publish refused: %.200s\n", c->rb);
    c->rl = c->busy = 0;
  }
}

// A follower that has been answered and does not read. The kernel takes little for it.
static int open_slow(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), small = 4096;
  struct timeval patience = {STALL_S, 0};
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small); // before the window is agreed on
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  char r[700];
  int n = snprintf(r, sizeof r, "GET %s HTTP/1.1\r\nHost: l\r\nAccept: text/event-stream\r\n\r\n", sub_path);
  if (fd < 0 || connect(fd, (void *)&a, sizeof a) < 0) {
    perror("slow follower");
    exit(1);
  }
  send_all(fd, r, n);
  if (recv(fd, r, 1, MSG_PEEK) <= 0) {
    fprintf(stderr, "a slow follower was not answered\n");
    exit(1);
  }
  return fd;
}

// Reads until all messages have come, or none comes any more; returns how many did.
static uint64_t drain_slow(int fd, uint64_t wanted) {
  uint64_t got = 0;
  ssize_t n;
  while (got < wanted && (n = recv(fd, buf, sizeof buf, 0)) > 0)
    for (char *p = buf, *end = buf + n; (p = memchr(p, '~', end - p)); p++) got++;
  close(fd);
  return got;
}

static double servers_rss_kb(void) {
  double sum = 0;
  char path[64], line[256];
  for (const char *p = pids; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    snprintf(path, sizeof path, "/proc/%d/status", atoi(p));
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
      if (!strncmp(line, "VmRSS:", 6)) sum += atof(line + 6);
    if (f) fclose(f);
  }
  return sum;
}
static double own_cpu_s(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + 1e-6 * (u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int turn(int timeout_ms) {
  struct epoll_event ev[512];
  int k = epoll_wait(ep, ev, 512, timeout_ms);
  for (int i = 0; i < k; i++) {
    conn *c = ev[i].data.ptr;
    if (ev[i].events & EPOLLERR) {
      fprintf(stderr, "connection error\n");
      exit(1);
    }
    if (!c->said_hello)
      hello(c);
    else if (c->publisher)
      publisher_read(c);
    else
      follower_read(c);
  }
  return k;
}

static void options(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "m:p:s:u:n:M:w:c:b:P:d:i:S:")) != -1;) {
    if (o == 'm')
      mode = !strcmp(optarg, "redis") ? REDIS : !strcmp(optarg, "nats") ? NATS : SSE;
    else if (o == 'p')
      port = atoi(optarg);
    else if (o == 's')
      sub_path = optarg;
    else if (o == 'u')
      pub_path = optarg;
    else if (o == 'n')
      N = atoi(optarg);
    else if (o == 'M')
      messages = atoi(optarg);
    else if (o == 'w')
      window = atoi(optarg);
    else if (o == 'c')
      C = atoi(optarg);
    else if (o == 'b')
      body_bytes = atoi(optarg) < BODY_MAX ? atoi(optarg) : BODY_MAX;
    else if (o == 'd')
      seconds = atof(optarg);
    else if (o == 'i')
      idle_s = atof(optarg);
    else if (o == 'S')
      S = atoi(optarg);
    else if (o == 'P')
      pids = optarg;
    else
      exit(2);
  }
}

int main(int argc, char **argv) {
  options(argc, argv);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  ep = epoll_create1(0);
  conn *subs = calloc(N, sizeof *subs);
  pubs = calloc(C, sizeof *pubs);

  double rss0 = servers_rss_kb();
  for (int started = 0; nready < N;) { // at most 128 connections under way
    while (started < N && started - nready < 128) open_conn(&subs[started++], EPOLLIN | EPOLLOUT);
    if (!turn(10000)) {
      fprintf(stderr, "connecting stalled at %d of %d\n", nready, N);
      return 1;
    }
  }
  int *slow = calloc(S + 1, sizeof *slow);
  for (int i = 0; i < S; i++) slow[i] = open_slow();
  double rss_idle = 0;
  for (uint64_t until = now() + (uint64_t)(idle_s * 1e9); now() < until;) turn(10);
  rss_idle = servers_rss_kb();
  for (int i = 0; i < C; i++) {
    pubs[i].publisher = 1;
    open_conn(&pubs[i], EPOLLIN | EPOLLOUT);
  }
  while (nready < N + C)
    if (!turn(10000)) {
      fprintf(stderr, "connecting publishers stalled\n");
      return 1;
    }

  received = hist_n = hist_max = 0;
  memset(hist, 0, sizeof hist);
  uint64_t cpu0 = cpu_ns(pids), t0 = now(), stop = t0 + (uint64_t)(seconds * 1e9), progress = t0, seen = 0;
  double own0 = own_cpu_s();
  int complete = 0;
  for (int by_time = !messages, stopping = 0;;) {
    uint64_t t = now();
    if (by_time && t >= stop) stopping = 1;
    for (int any = 1; any && !stopping;) {
      any = 0;
      for (int j = 0; j < C; j++) {
        if ((!by_time && published >= messages) || published - received / N >= (uint64_t)window) break;
        if (!pubs[j].busy) {
          publish(&pubs[j]);
          any = 1;
        }
      }
    }
    if ((stopping || (!by_time && published >= messages)) && received >= published * N) {
      complete = 1;
      break;
    }
    turn(500);
    t = now();
    if (received != seen) {
      seen = received;
      progress = t;
    } else if (t - progress > STALL_S * 1000000000ull)
      break;
    if (t - t0 > RUN_S_MAX * 1000000000ull) break;
  }
  uint64_t t1 = complete ? now() : progress;
  double wall = (t1 - t0) / 1e9, cpu = cpu_ns(pids) - cpu0, own = own_cpu_s() - own0;
  double rss_end = servers_rss_kb();
  uint64_t slow_received = 0;
  for (int i = 0; i < S; i++) slow_received += drain_slow(slow[i], published);
  complete = complete && received == published * N && slow_received == published * S && !refused;
  printf("{\"ok\":%d,\"messages\":%llu,\"received\":%llu,\"refused\":%llu,\"del_s\":%.0f,\"cpu_us\":%.3f,"
         "\"p50_us\":%.0f,\"p99_us\":%.0f,\"max_us\":%llu,\"rss0_kb\":%.0f,\"rss_idle_kb\":%.0f,\"rss_end_"
         "kb\":%.0f,"
         "\"rss_per_conn_b\":%.0f,\"load_cpu\":%.2f,\"slow_received\":%llu}\n",
         complete, (unsigned long long)published,
         (unsigned long long)received, (unsigned long long)refused, received / wall,
         cpu / 1e3 / (received ? received : 1), hist_quantile(.5), hist_quantile(.99),
         (unsigned long long)hist_max, rss0, rss_idle, rss_end, (rss_idle - rss0) * 1024 / N,
         own / wall, (unsigned long long)slow_received);
  return 0;
}
