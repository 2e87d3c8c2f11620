/* SPDX-License-Identifier: MIT */
/*
 * vsock_cases.c - the vsock device, driven through its queues.
 *   vsock_cases --list    the cases' names
 *   vsock_cases CASE      0: good; else it says on stderr what is wrong
 * Each runs with and without VIRTIO_F_EVENT_IDX, and with both ways to lay out packets.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vsock_driver.h"

enum {
	GUEST_PORT = 1024,
	HOST_PORT = 77,
	GUEST_BUFFER = 64 << 10,
};

#define CHECK(condition) \
	((condition) ? (void)0 : driver_fail("%s:%d: not so: %s", __func__, __LINE__, #condition))

/* The guest's end of one stream. */
struct end {
	uint32_t guest_port, host_port;
	uint32_t alloc;             /* what it says that it has room for */
	uint32_t fwd_cnt;
	uint32_t tx_cnt;
	uint32_t peer_alloc, peer_fwd_cnt;
	uint64_t received;          /* bytes, for the pattern */
	uint64_t sent;
	uint32_t flags;             /* of SHUTDOWN, all that came */
	bool reset;
	int fd;                     /* the host's */
};

static bool event_idx;

/* The byte at this place of a stream; no two streams look alike. */
static uint8_t pattern(uint32_t port, uint64_t place)
{
	return (uint8_t)(place * 7 + (place >> 8) * 13 + (place >> 16) + port);
}

static bool send_op(const struct end *end, uint16_t op, uint32_t flags)
{
	const struct vsock_header header = {
		.src_cid = DRIVER_CID, .dst_cid = VSOCK_HOST_CID,
		.src_port = end->guest_port, .dst_port = end->host_port,
		.type = VSOCK_TYPE_STREAM, .op = op, .flags = flags,
		.buf_alloc = end->alloc, .fwd_cnt = end->fwd_cnt,
	};
	bool sent = driver_send(&header, NULL, 0);

	driver_settle();
	return sent;
}

static uint32_t room_of(const struct end *end)
{
	return end->peer_alloc - (end->tx_cnt - end->peer_fwd_cnt);
}

/* The next bytes of the pattern; the bytes sent, by credit. */
static uint32_t send_bytes(struct end *end, uint32_t len)
{
	static uint8_t data[DRIVER_TX_SIZE];
	struct vsock_header header = {
		.src_cid = DRIVER_CID, .dst_cid = VSOCK_HOST_CID,
		.src_port = end->guest_port, .dst_port = end->host_port,
		.type = VSOCK_TYPE_STREAM, .op = VSOCK_OP_RW,
		.buf_alloc = end->alloc, .fwd_cnt = end->fwd_cnt,
	};

	if (len > room_of(end))
		len = room_of(end);
	if (len > DRIVER_TX_SIZE)
		len = DRIVER_TX_SIZE;
	for (uint32_t i = 0; i < len; i++)
		data[i] = pattern(end->guest_port, end->sent + i);
	header.len = len;
	if (!len || !driver_send(&header, data, len))
		return 0;
	end->tx_cnt += len;
	end->sent += len;
	driver_settle();
	return len;
}

/* Take the next packet, of whichever of these streams; its end, NULL: there is no packet. */
static struct end *take(struct end *ends, uint32_t n, struct driver_packet *packet)
{
	struct end *end = NULL;

	if (!driver_take(packet))
		return NULL;
	CHECK(packet->header.dst_cid == DRIVER_CID);
	CHECK(packet->header.src_cid == VSOCK_HOST_CID);
	CHECK(packet->header.type == VSOCK_TYPE_STREAM);
	for (uint32_t i = 0; i < n; i++)
		if (ends[i].guest_port == packet->header.dst_port &&
		    ends[i].host_port == packet->header.src_port)
			end = &ends[i];
	if (!end)
		driver_fail("operation %u of no stream: ports %u, %u", packet->header.op,
			    packet->header.dst_port, packet->header.src_port);
	end->peer_alloc = packet->header.buf_alloc;
	end->peer_fwd_cnt = packet->header.fwd_cnt;
	for (uint32_t i = 0; i < packet->header.len; i++)
		CHECK(packet->data[i] == pattern(end->guest_port, end->received + i));
	end->received += packet->header.len;
	if (packet->header.op == VSOCK_OP_SHUTDOWN)
		end->flags |= packet->header.flags;
	end->reset |= packet->header.op == VSOCK_OP_RST;
	CHECK((uint32_t)end->received - end->fwd_cnt <= end->alloc || !packet->header.len);
	return end;
}

/* Take all that comes. */
static void take_all(struct end *ends, uint32_t n)
{
	struct driver_packet packet;

	while (take(ends, n, &packet))
		driver_settle();
}

static void expect(struct end *end, uint16_t op)
{
	struct driver_packet packet;

	driver_settle();
	CHECK(take(end, 1, &packet));
	if (packet.header.op != op)
		driver_fail("operation %u instead of %u", packet.header.op, op);
}

static void expect_nothing(void)
{
	struct driver_packet packet;

	driver_settle();
	if (driver_take(&packet))
		driver_fail("operation %u, unexpected", packet.header.op);
}

static struct driver_event last_event(enum driver_call call)
{
	CHECK(driver.n_events);
	CHECK(driver.event[driver.n_events - 1].call == call);
	return driver.event[driver.n_events - 1];
}

/* The next bytes of the pattern into the host's socket, as many as it takes. */
static uint32_t host_send(const struct end *end, uint64_t place, uint32_t len)
{
	static uint8_t data[1 << 20];
	ssize_t n;

	for (uint32_t i = 0; i < len; i++)
		data[i] = pattern(end->guest_port, place + i);
	n = send(end->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	CHECK(n >= 0 || errno == EAGAIN);
	driver_settle();
	return n < 0 ? 0 : (uint32_t)n;
}

/* Read what there is, checked against the pattern from place; -1: the end. */
static int64_t host_read(const struct end *end, uint64_t place, uint32_t len)
{
	static uint8_t data[1 << 20];
	ssize_t n = recv(end->fd, data, len, MSG_DONTWAIT);

	CHECK(n >= 0 || errno == EAGAIN);
	for (ssize_t i = 0; i < n; i++)
		CHECK(data[i] == pattern(end->guest_port, place + (uint64_t)i));
	driver_settle();
	return n ? (n < 0 ? 0 : n) : -1;
}

static bool at_end(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT) == 0;
}

/* Ask for a stream from the host; what the guest must see of it. */
static struct end ask(uint32_t port)
{
	static uint64_t cookie;
	struct end end = { .guest_port = port, .alloc = GUEST_BUFFER };
	int fds[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	end.fd = fds[1];
	vmm_vsock_connect(driver.device, port, ++cookie, fds[0]);
	return end;
}

static void expect_request(struct end *end)
{
	struct driver_packet packet;

	driver_settle();
	CHECK(driver_take(&packet));
	CHECK(packet.header.op == VSOCK_OP_REQUEST && packet.header.dst_port == end->guest_port);
	CHECK(packet.header.buf_alloc == VSOCK_BUFFER);
	end->host_port = packet.header.src_port;
	end->peer_alloc = packet.header.buf_alloc;
}

static struct end asked(uint32_t port)
{
	struct end end = ask(port);

	expect_request(&end);
	return end;
}

static struct end connect_with(uint32_t port, uint32_t alloc)
{
	struct end end = asked(port);

	end.alloc = alloc;
	CHECK(send_op(&end, VSOCK_OP_RESPONSE, 0));
	CHECK(last_event(DRIVER_CONNECTED).port == port);
	return end;
}

static struct end connected_to(uint32_t port)
{
	return connect_with(port, GUEST_BUFFER);
}

/* A stream that the guest opens. */
static struct end accepted_from(uint32_t port)
{
	struct end end = { .guest_port = port, .host_port = HOST_PORT, .alloc = GUEST_BUFFER };

	CHECK(send_op(&end, VSOCK_OP_REQUEST, 0));
	expect(&end, VSOCK_OP_RESPONSE);
	CHECK(last_event(DRIVER_ACCEPTED).port == HOST_PORT);
	end.fd = last_event(DRIVER_ACCEPTED).fd;
	return end;
}

/* The guest closes; the device must confirm it, and the host see the end. */
static void close_guest(struct end *end)
{
	CHECK(send_op(end, VSOCK_OP_SHUTDOWN, VSOCK_NO_MORE));
	expect(end, VSOCK_OP_RST);
	CHECK(at_end(end->fd));
	close(end->fd);
}

/* --- cases ----------------------------------------------------------------------------------- */

static void case_connect(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(host_send(&end, 0, 1000) == 1000);
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == 1000);
	CHECK(send_bytes(&end, 5000) == 5000);
	CHECK(host_read(&end, 0, 1 << 20) == 5000);
	close_guest(&end);
	expect_nothing();
}

static void case_accept(void)
{
	struct end stray = { .guest_port = 5, .host_port = HOST_PORT, .alloc = GUEST_BUFFER };
	struct end end;

	CHECK(send_op(&stray, VSOCK_OP_REQUEST, 0));
	expect(&stray, VSOCK_OP_RST);
	CHECK(!vmm_vsock_listen(driver.device, HOST_PORT));
	end = accepted_from(5);
	CHECK(send_bytes(&end, 100) == 100);
	CHECK(host_read(&end, 0, 1000) == 100);
	CHECK(host_send(&end, 0, 100) == 100);
	expect(&end, VSOCK_OP_RW);
	vmm_vsock_unlisten(driver.device, HOST_PORT);
	CHECK(send_bytes(&end, 100) == 100);
	stray.guest_port = 6;
	CHECK(send_op(&stray, VSOCK_OP_REQUEST, 0));
	expect(&stray, VSOCK_OP_RST);
	CHECK(host_read(&end, 100, 1000) == 100);
	close_guest(&end);
}

static void case_listeners_bounded(void)
{
	for (uint32_t i = 0; i < VSOCK_LISTENERS; i++) {
		CHECK(!vmm_vsock_listen(driver.device, i));
		CHECK(!vmm_vsock_listen(driver.device, i));
	}
	CHECK(vmm_vsock_listen(driver.device, 5000) == -ENOSPC);
	vmm_vsock_unlisten(driver.device, 3);
	CHECK(!vmm_vsock_listen(driver.device, 5000));
}

static void case_refused(void)
{
	struct end end = asked(GUEST_PORT);

	CHECK(send_op(&end, VSOCK_OP_RST, 0));
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT);
	CHECK(at_end(end.fd));
	close(end.fd);
	expect_nothing();
}

static void case_refused_without_driver(void)
{
	struct end end;

	driver_reset();
	end = ask(GUEST_PORT);
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT);
	CHECK(at_end(end.fd));
	close(end.fd);
}

static void case_host_gone_before_the_answer(void)
{
	struct end end = asked(GUEST_PORT);

	close(end.fd);
	driver_settle();
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT);
	expect(&end, VSOCK_OP_RST);
	/* the answer crossed it */
	CHECK(send_op(&end, VSOCK_OP_RESPONSE, 0));
	expect(&end, VSOCK_OP_RST);
	expect_nothing();
}

static void case_host_gone_before_the_question(void)
{
	struct end end;

	driver_reset();
	driver_start(event_idx, 0);
	end = ask(GUEST_PORT);
	close(end.fd);
	driver_settle();
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT);
	driver_post(4);
	expect_nothing();
}

/* Both ways, each reader in pieces of its own size, more than any buffer holds. */
static void exchange(struct end *end, uint64_t bytes)
{
	uint64_t to_guest = 0, from_guest = 0, turns = 0;
	uint64_t first_sent = end->sent, first_received = end->received;

	while (end->received - first_received < bytes || from_guest < bytes) {
		struct driver_packet packet;
		int64_t n;

		if (++turns > bytes)
			driver_fail("stalled: %llu to the guest, %llu from it",
				    (unsigned long long)end->received,
				    (unsigned long long)from_guest);
		if (to_guest < bytes)
			to_guest += host_send(end, first_received + to_guest,
					      (uint32_t)(bytes - to_guest > 100000 ? 100000 :
							 bytes - to_guest));
		while (end->sent - first_sent < bytes &&
		       send_bytes(end, (uint32_t)(bytes - (end->sent - first_sent))))
			;
		n = host_read(end, first_sent + from_guest, turns % 3 ? 3000 : 200000);
		from_guest += n > 0 ? (uint64_t)n : 0;
		for (int i = 0; i < 9 && take(end, 1, &packet); i++) {
			/* a driver that tells of its room late, but when asked */
			if (packet.header.op == VSOCK_OP_CREDIT_REQUEST) {
				end->fwd_cnt = (uint32_t)end->received;
				send_op(end, VSOCK_OP_CREDIT_UPDATE, 0);
			}
		}
	}
	CHECK(end->received - first_received == bytes && from_guest == bytes);
	take_all(end, 1);
}

static void case_bulk(void)
{
	struct end end = connected_to(GUEST_PORT);

	exchange(&end, 16 << 20);
	close_guest(&end);
}

/* As if 2^32 bytes less a few had gone both ways. */
static void case_credit_wraps(void)
{
	const uint32_t near = 0u - 100000;
	struct end end = connected_to(GUEST_PORT);
	struct vsock_stream *stream = vsock_find((struct vmm_vsock *)driver.device,
						 end.guest_port, end.host_port);

	CHECK(stream);
	stream->tx_cnt = stream->peer_fwd_cnt = near;
	stream->rx_cnt = stream->fwd_cnt = stream->told_fwd_cnt = near;
	end.tx_cnt = end.peer_fwd_cnt = near;
	end.fwd_cnt = near;
	end.received = near;
	end.sent = near;
	/* room is counted over the edge too */
	stream->tx_cnt = stream->peer_fwd_cnt = 0u - 1000;
	CHECK(host_send(&end, near, 3000) == 3000);
	expect(&end, VSOCK_OP_RW);
	CHECK(host_send(&end, near + 3000, 3000) == 3000);
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == near + 6000ULL);
	stream->tx_cnt = near + 6000;
	end.fwd_cnt = near + 6000;
	exchange(&end, 4 << 20);
	CHECK(stream->tx_cnt < near && stream->fwd_cnt < near);
	close_guest(&end);
}

static void case_credit_request_is_answered(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(send_bytes(&end, 100) == 100);
	expect_nothing();
	CHECK(send_op(&end, VSOCK_OP_CREDIT_REQUEST, 0));
	expect(&end, VSOCK_OP_CREDIT_UPDATE);
	CHECK(end.peer_fwd_cnt == 100 && end.peer_alloc == VSOCK_BUFFER);
	CHECK(host_read(&end, 0, 1000) == 100);
	close_guest(&end);
}

static void case_few_credit_updates(void)
{
	struct end end = connected_to(GUEST_PORT);
	struct driver_packet packet;
	uint32_t updates = 0;

	while (end.sent < 4 << 20) {
		CHECK(send_bytes(&end, 1000) == 1000);
		CHECK(host_read(&end, end.sent - 1000, 5000) == 1000);
		while (take(&end, 1, &packet))
			updates++;
	}
	CHECK(updates <= (4 << 20) / VSOCK_UPDATE + 1);
	close_guest(&end);
}

static void case_no_credit(void)
{
	struct end end = connect_with(GUEST_PORT, 1000);

	CHECK(host_send(&end, 0, 5000) == 5000);
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == 1000);
	/* asked once, however often the answer is none */
	expect(&end, VSOCK_OP_CREDIT_REQUEST);
	for (int i = 0; i < 3; i++)
		CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	expect_nothing();
	end.fwd_cnt = 1000;
	CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == 2000);
	expect(&end, VSOCK_OP_CREDIT_REQUEST);
	/* room taken back, and counts that can't be, are no room */
	end.alloc = 10;
	CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	expect_nothing();
	end.fwd_cnt = 123456;
	CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	expect_nothing();
	end.alloc = 1 << 20;
	end.fwd_cnt = 2000;
	CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == 5000);
	/* and it is listened to again */
	CHECK(host_send(&end, 5000, 100) == 100);
	expect(&end, VSOCK_OP_RW);
	close_guest(&end);
}

static void case_guest_half_closes(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(send_bytes(&end, 100) == 100);
	CHECK(send_op(&end, VSOCK_OP_SHUTDOWN, VSOCK_NO_SEND));
	CHECK(host_read(&end, 0, 1000) == 100);
	CHECK(host_read(&end, 0, 1000) == -1);
	expect_nothing();
	CHECK(host_send(&end, 0, 3000) == 3000);
	expect(&end, VSOCK_OP_RW);
	CHECK(end.received == 3000);
	close(end.fd);
	driver_settle();
	expect(&end, VSOCK_OP_SHUTDOWN);
	CHECK(end.flags == VSOCK_NO_MORE);
	CHECK(send_op(&end, VSOCK_OP_RST, 0));
	expect_nothing();
}

static void case_host_half_closes(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(host_send(&end, 0, 3000) == 3000);
	CHECK(!shutdown(end.fd, SHUT_WR));
	expect(&end, VSOCK_OP_RW);
	expect(&end, VSOCK_OP_SHUTDOWN);
	CHECK(end.received == 3000 && end.flags == VSOCK_NO_SEND);
	CHECK(send_bytes(&end, 4000) == 4000);
	CHECK(host_read(&end, 0, 10000) == 4000);
	close_guest(&end);
	expect_nothing();
}

static void case_host_closes_after_its_half(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(!shutdown(end.fd, SHUT_WR));
	expect(&end, VSOCK_OP_SHUTDOWN);
	CHECK(end.flags == VSOCK_NO_SEND);
	close(end.fd);
	expect(&end, VSOCK_OP_SHUTDOWN);
	CHECK(end.flags == VSOCK_NO_MORE);
	CHECK(send_op(&end, VSOCK_OP_RST, 0));
	expect_nothing();
}

static void case_guest_stops_reading(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(send_op(&end, VSOCK_OP_SHUTDOWN, VSOCK_NO_RECEIVE));
	CHECK(send(end.fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EPIPE);
	CHECK(send_bytes(&end, 4000) == 4000);
	CHECK(host_read(&end, 0, 10000) == 4000);
	close_guest(&end);
	expect_nothing();
}

static void case_host_stops_reading(void)
{
	struct end end = connected_to(GUEST_PORT);

	CHECK(!shutdown(end.fd, SHUT_RD));
	CHECK(send_bytes(&end, 4000) == 4000);
	expect(&end, VSOCK_OP_SHUTDOWN);
	CHECK(end.flags == VSOCK_NO_RECEIVE);
	CHECK(host_send(&end, 0, 500) == 500);
	expect(&end, VSOCK_OP_RW);
	close_guest(&end);
}

static void case_host_closes_with_bytes_under_way(void)
{
	struct end end = connect_with(GUEST_PORT, 5000);
	struct end other;

	CHECK(host_send(&end, 0, 20000) == 20000);
	close(end.fd);
	driver_settle();
	while (end.received < 20000) {
		take_all(&end, 1);
		CHECK(!end.flags || end.received == 20000);
		end.fwd_cnt = (uint32_t)end.received;
		CHECK(send_op(&end, VSOCK_OP_CREDIT_UPDATE, 0));
	}
	take_all(&end, 1);
	CHECK(end.flags == VSOCK_NO_MORE);
	CHECK(send_op(&end, VSOCK_OP_RST, 0));
	expect_nothing();
	other = connected_to(GUEST_PORT);
	close_guest(&other);
}

static void case_guest_closes_before_a_slow_reader(void)
{
	struct end end = connected_to(GUEST_PORT);
	uint64_t got = 0;
	int64_t n;

	while (send_bytes(&end, DRIVER_TX_SIZE))
		;
	take_all(&end, 1);
	while (send_bytes(&end, DRIVER_TX_SIZE))
		;
	CHECK(end.sent > VSOCK_BUFFER);
	CHECK(send_op(&end, VSOCK_OP_SHUTDOWN, VSOCK_NO_MORE));
	take_all(&end, 1);
	CHECK(end.reset);
	/* its ports are free for another while the bytes wait */
	while ((n = host_read(&end, got, 1000)) >= 0)
		got += (uint64_t)n;
	CHECK(got == end.sent);
	close(end.fd);
	expect_nothing();
}

static void case_guest_resets_before_a_slow_reader(void)
{
	struct end end = connected_to(GUEST_PORT);
	uint64_t got = 0;
	int64_t n;

	while (send_bytes(&end, DRIVER_TX_SIZE))
		;
	CHECK(send_op(&end, VSOCK_OP_RST, 0));
	while ((n = host_read(&end, got, 1000)) >= 0)
		got += (uint64_t)n;
	CHECK(got == end.sent);
	close(end.fd);
	take_all(&end, 1);
}

static void case_many(void)
{
	static struct end ends[VSOCK_STREAMS];

	for (int round = 0; round < 2; round++) {
		struct end over;

		for (uint32_t i = 0; i < VSOCK_STREAMS; i++)
			ends[i] = connected_to(i);
		over = ask(5000);
		CHECK(last_event(DRIVER_REFUSED).port == 5000 && at_end(over.fd));
		close(over.fd);
		for (uint32_t i = 0; i < VSOCK_STREAMS; i++) {
			CHECK(host_send(&ends[i], 0, 2000) == 2000);
			CHECK(send_bytes(&ends[i], 3000) == 3000);
		}
		take_all(ends, VSOCK_STREAMS);
		for (uint32_t i = 0; i < VSOCK_STREAMS; i++) {
			CHECK(ends[i].received == 2000);
			CHECK(host_read(&ends[i], 0, 5000) == 3000);
			close_guest(&ends[i]);
		}
		driver.n_events = 0;
	}
}

/* One host reader sleeps: the others' bytes go on. */
static void case_stalled_host(void)
{
	struct end ends[3] = { connected_to(1), connected_to(2), connected_to(3) };
	uint64_t got = 0;
	int64_t n;

	while (send_bytes(&ends[0], DRIVER_TX_SIZE))
		take_all(ends, 3);
	exchange(&ends[1], 2 << 20);
	CHECK(!room_of(&ends[0]));
	exchange(&ends[2], 2 << 20);
	while ((n = host_read(&ends[0], got, 1 << 20)) > 0)
		got += (uint64_t)n;
	CHECK(got == ends[0].sent);
	take_all(ends, 3);
	CHECK(room_of(&ends[0]) > VSOCK_BUFFER / 2);
	for (int i = 0; i < 3; i++)
		close_guest(&ends[i]);
}

/* The socket has room again before the device knows: what is buffered still comes first. */
static void case_no_overtaking(void)
{
	struct end end = connected_to(1);
	static uint8_t data[1 << 17];
	uint64_t got;
	int64_t n;

	while (send_bytes(&end, 10000) && end.sent < 230000)
		;
	CHECK(end.sent >= 230000 && room_of(&end) > 1000);
	n = recv(end.fd, data, sizeof(data), MSG_DONTWAIT);
	CHECK(n == sizeof(data));
	got = (uint64_t)n;
	CHECK(send_bytes(&end, 1000) == 1000);
	while ((n = host_read(&end, got, 1 << 20)) > 0)
		got += (uint64_t)n;
	CHECK(got == end.sent);
	take_all(&end, 1);
	close_guest(&end);
}

/* One of the guest's readers sleeps, with and without a host's writer that is still there. */
static void case_stalled_guest(void)
{
	struct end ends[3] = { connect_with(1, 0), connect_with(2, 100), connected_to(3) };
	struct driver_packet packet;

	CHECK(host_send(&ends[0], 0, 100000) == 100000);
	CHECK(host_send(&ends[1], 0, 50000) == 50000);
	close(ends[1].fd);
	driver_settle();
	while (take(ends, 3, &packet))
		CHECK(packet.header.op == VSOCK_OP_CREDIT_REQUEST ||
		      (packet.header.op == VSOCK_OP_RW && packet.header.dst_port == 2));
	exchange(&ends[2], 2 << 20);
	CHECK(ends[1].received == 100 && !ends[1].flags);
	close_guest(&ends[2]);
	ends[0].alloc = ends[1].alloc = 1 << 20;
	CHECK(send_op(&ends[0], VSOCK_OP_CREDIT_UPDATE, 0));
	CHECK(send_op(&ends[1], VSOCK_OP_CREDIT_UPDATE, 0));
	take_all(ends, 2);
	CHECK(ends[0].received == 100000 && ends[1].received == 50000);
	CHECK(ends[1].flags == VSOCK_NO_MORE);
	close_guest(&ends[0]);
	CHECK(send_op(&ends[1], VSOCK_OP_RST, 0));
}

/* Without buffers all wait; then each has its turn. */
static void case_rounds_are_fair(void)
{
	enum { N = 10, ROUNDS = 5 };
	struct end ends[N];

	for (uint32_t i = 0; i < N; i++)
		ends[i] = connected_to(i);
	driver.repost = false;
	driver_reset();
	for (uint32_t i = 0; i < N; i++)
		close(ends[i].fd);
	driver_start(event_idx, 0);
	driver_post(N);
	for (uint32_t i = 0; i < N; i++)
		ends[i] = connect_with(i, 1 << 20);
	for (uint32_t i = 0; i < N; i++)
		CHECK(host_send(&ends[i], 0, 100000) == 100000);
	expect_nothing();
	for (uint32_t round = 1; round <= ROUNDS; round++) {
		driver_post(N);
		driver_settle();
		take_all(ends, N);
		for (uint32_t i = 0; i < N; i++)
			CHECK(ends[i].received == (uint64_t)round * DRIVER_RX_SIZE);
	}
}

/* In line for a buffer, but with nothing to say, or gone, when it comes. */
static void case_changes_in_the_line(void)
{
	struct end ends[3] = { connected_to(1), connected_to(2), connected_to(3) };
	struct driver_packet packet;
	struct end next;
	char byte;

	driver.repost = false;
	driver_reset();
	for (int i = 0; i < 3; i++)
		close(ends[i].fd);
	driver_start(event_idx, 3);
	for (uint32_t i = 0; i < 3; i++)
		ends[i] = connected_to(i + 1);
	for (int i = 0; i < 3; i++)
		CHECK(host_send(&ends[i], 0, 100) == 100);
	ends[0].alloc = 0;
	CHECK(send_op(&ends[0], VSOCK_OP_CREDIT_UPDATE, 0));
	CHECK(send_op(&ends[1], VSOCK_OP_RST, 0));
	/* it took none of the host's bytes */
	CHECK(recv(ends[1].fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == ECONNRESET);
	next = ask(2);
	driver_post(1);
	driver_settle();
	take_all(ends, 3);
	CHECK(ends[2].received == 100 && !ends[0].received);
	/* that one used no buffer up */
	driver_post(1);
	driver_settle();
	CHECK(driver_take(&packet) && packet.header.op == VSOCK_OP_REQUEST);
	ends[0].alloc = 100;
	driver_post(1);
	CHECK(send_op(&ends[0], VSOCK_OP_CREDIT_UPDATE, 0));
	take_all(ends, 3);
	CHECK(ends[0].received == 100);
	close(ends[0].fd);
	close(ends[1].fd);
	close(ends[2].fd);
	close(next.fd);
}

static struct vsock_header good_header(const struct end *end)
{
	return (struct vsock_header){
		.src_cid = DRIVER_CID, .dst_cid = VSOCK_HOST_CID,
		.src_port = end->guest_port, .dst_port = end->host_port,
		.type = VSOCK_TYPE_STREAM, .op = VSOCK_OP_RW,
		.buf_alloc = end->alloc, .fwd_cnt = end->fwd_cnt,
	};
}

/* What concerns no stream hurts none. */
static void case_stray_packets(void)
{
	struct end end = connected_to(GUEST_PORT);
	struct vsock_header header = good_header(&end);
	struct driver_packet packet;

	for (uint32_t len = 1; len < sizeof(header); len++)
		CHECK(driver_send_raw(&header, len));
	header.op = VSOCK_OP_RST;
	header.src_cid = DRIVER_CID + 1;
	CHECK(driver_send(&header, NULL, 0));
	header.src_cid |= 1ULL << 32;
	CHECK(driver_send(&header, NULL, 0));
	expect_nothing();
	for (uint16_t op = 0; op < 12; op++) {
		header = good_header(&end);
		header.src_port++;
		header.op = op;
		CHECK(driver_send(&header, NULL, 0));
		driver_settle();
		CHECK(driver_take(&packet) == (op != VSOCK_OP_RST));
		CHECK(op == VSOCK_OP_RST || packet.header.op == VSOCK_OP_RST);
	}
	header = good_header(&end);
	header.dst_cid = 17;
	CHECK(driver_send(&header, NULL, 0));
	driver_settle();
	CHECK(driver_take(&packet) && packet.header.src_cid == 17);
	CHECK(packet.header.op == VSOCK_OP_RST);
	header = good_header(&end);
	header.type = 2;
	CHECK(driver_send(&header, NULL, 0));
	driver_settle();
	CHECK(driver_take(&packet) && packet.header.op == VSOCK_OP_RST);
	CHECK(packet.header.type == 2);
	CHECK(send_bytes(&end, 100) == 100);
	CHECK(host_read(&end, 0, 1000) == 100);
	close_guest(&end);
}

/* A packet that breaks its stream: that one is reset, and its host sees the end. */
static void breaks(struct vsock_header header, struct end *end)
{
	CHECK(driver_send(&header, NULL, 0));
	expect(end, VSOCK_OP_RST);
	expect_nothing();
	CHECK(at_end(end->fd));
	close(end->fd);
}

static void case_packets_that_break_their_stream(void)
{
	struct vsock_header header;
	struct end end;

	for (uint16_t op = 0; op < 20; op++) {
		if (op >= VSOCK_OP_RST && op <= VSOCK_OP_CREDIT_REQUEST)
			continue;
		end = connected_to(GUEST_PORT);
		header = good_header(&end);
		header.op = op;
		breaks(header, &end);
	}
	/* more bytes than there are */
	end = connected_to(GUEST_PORT);
	header = good_header(&end);
	header.len = 1;
	breaks(header, &end);
	end = connected_to(GUEST_PORT);
	header.dst_port = end.host_port;
	header.len = UINT32_MAX;
	breaks(header, &end);
	/* bytes behind its end */
	end = connected_to(GUEST_PORT);
	CHECK(send_op(&end, VSOCK_OP_SHUTDOWN, VSOCK_NO_SEND));
	header = good_header(&end);
	breaks(header, &end);
	/* an answer that was not asked for, instead of the one that was */
	end = asked(GUEST_PORT);
	header = good_header(&end);
	breaks(header, &end);
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT);
}

/* The host's port can be guessed: a yes before the question was read. */
static void case_answer_before_the_question(void)
{
	struct end end;

	driver_reset();
	driver_start(event_idx, 0);
	end = ask(GUEST_PORT);
	end.host_port = ((struct vmm_vsock *)driver.device)->next_port - 1;
	CHECK(send_op(&end, VSOCK_OP_RESPONSE, 0));
	CHECK(last_event(DRIVER_REFUSED).port == GUEST_PORT && at_end(end.fd));
	close(end.fd);
	driver_post(4);
	expect_nothing();
}

static void case_credit_overrun(void)
{
	struct end end = connected_to(GUEST_PORT);

	/* as if the room had no end */
	for (int i = 0; i < 100 && !end.reset; i++) {
		end.peer_alloc = 1 << 30;
		send_bytes(&end, DRIVER_TX_SIZE);
		take_all(&end, 1);
	}
	CHECK(end.reset);
	close(end.fd);
}

/* Resets that are not fetched: the device keeps a few, and stops listening until they are. */
static void case_flood_of_strays(void)
{
	struct end stray = { .guest_port = 9, .host_port = 9 };
	struct vsock_header header = good_header(&stray);
	struct driver_packet packet;
	uint32_t sent = 0, answered = 0;

	driver_reset();
	driver_start(event_idx, 0);
	while (driver_send(&header, NULL, 0))
		sent++;
	driver_settle();
	while (driver_send(&header, NULL, 0))
		sent++;
	CHECK(sent > VSOCK_REPLIES && sent < 1000);
	driver.repost = false;
	driver.quiet = true;
	driver_post(10);
	driver.quiet = false;
	driver_kick(VSOCK_RX);
	driver_settle();
	for (int i = 0; i < 10; i++)
		answered += driver_take(&packet);
	CHECK(answered == 10);
	CHECK(driver_send(&header, NULL, 0));
	sent++;
	driver.repost = true;
	for (int i = 0; i < 10000; i++) {
		sent += driver_send(&header, NULL, 0);
		driver_post(1);
		driver_settle();
		answered += driver_take(&packet);
	}
	for (driver_settle(); driver_take(&packet); driver_settle())
		answered++;
	CHECK(sent > 5000 && answered == sent);
}

/* As many packets as the queue holds, by one kick; how many. */
static uint32_t send_full(const struct vsock_header *header)
{
	uint32_t sent = 0;

	driver.quiet = true;
	while (driver_send(header, NULL, 0))
		sent++;
	driver.quiet = false;
	driver_kick(VSOCK_TX);
	driver_settle();
	return sent;
}

/* More than one turn's packets, by one kick. */
static void case_full_queues(void)
{
	enum { N = 128 };
	struct end ends[N];
	struct vsock_header header;
	uint32_t full;

	ends[0] = connected_to(0);
	header = good_header(&ends[0]);
	header.op = VSOCK_OP_CREDIT_UPDATE;
	full = send_full(&header);
	CHECK(full >= VSOCK_BATCH && send_full(&header) == full);
	header.src_port++;
	full = send_full(&header);
	CHECK(send_full(&header) == full);
	/* as many resets, and then as many streams' bytes, at once */
	for (uint32_t i = 0; i < 2 * full; i++) {
		struct driver_packet packet;

		driver_settle();
		CHECK(driver_take(&packet));
	}
	for (uint32_t i = 1; i < full; i++)
		ends[i] = connected_to(i);
	driver.repost = false;
	for (uint32_t i = 0; i < full; i++)
		CHECK(host_send(&ends[i], 0, 100) == 100);
	take_all(ends, full);
	for (uint32_t i = 0; i < full; i++)
		CHECK(host_send(&ends[i], 100, 100) == 100);
	driver.quiet = true;
	driver_post(full);
	driver.quiet = false;
	driver_kick(VSOCK_RX);
	driver_settle();
	take_all(ends, full);
	for (uint32_t i = 0; i < full; i++) {
		CHECK(ends[i].received == 200);
		close(ends[i].fd);
	}
}

static void case_flood_of_requests(void)
{
	CHECK(!vmm_vsock_listen(driver.device, HOST_PORT));
	for (uint32_t i = 0; i < 2 * VSOCK_STREAMS; i++) {
		struct end end = { .guest_port = i, .host_port = HOST_PORT };

		CHECK(send_op(&end, VSOCK_OP_REQUEST, 0));
		expect(&end, i < VSOCK_STREAMS ? VSOCK_OP_RESPONSE : VSOCK_OP_RST);
	}
	CHECK(driver.n_events == VSOCK_STREAMS);
	for (uint32_t i = 0; i < VSOCK_STREAMS; i++)
		close(driver.event[i].fd);
	driver_settle();
}

static void case_reset(void)
{
	struct end open = connected_to(1), waiting = asked(2), next;

	while (send_bytes(&open, DRIVER_TX_SIZE))
		;
	CHECK(host_send(&open, 0, 100000) == 100000);
	driver_reset();
	CHECK(last_event(DRIVER_REFUSED).port == 2);
	CHECK(at_end(waiting.fd));
	/* what had come is still delivered */
	for (uint64_t got = 0; got < open.sent;) {
		int64_t n = host_read(&open, got, 1 << 20);

		CHECK(n > 0);
		got += (uint64_t)n;
	}
	close(open.fd);
	close(waiting.fd);
	driver_start(event_idx, UINT32_MAX);
	expect_nothing();
	next = connected_to(1);
	exchange(&next, 1 << 20);
	close_guest(&next);
}

/* What begins before the driver has acted upon the event would be ended by it. */
static void case_transport_reset(void)
{
	struct end open = connected_to(1), next, early;
	uint32_t event = 99;

	vmm_vsock_transport_reset(driver.device);
	CHECK(at_end(open.fd));
	close(open.fd);
	CHECK(!driver_take_event(&event));
	driver_post_event();
	CHECK(driver_take_event(&event) && event == 0);
	driver_post_event();
	CHECK(!driver_take_event(&event));
	/* and with more than one buffer there, by which to see that one comes back */
	driver_post_event();
	vmm_vsock_transport_reset(driver.device);
	CHECK(driver_take_event(&event) && event == 0);
	early = ask(2);
	expect_nothing();
	/* a kick alone is no answer */
	driver.device->ops->notify(driver.device, VSOCK_EVENT);
	expect_nothing();
	driver_post_event();
	expect_request(&early);
	CHECK(send_op(&early, VSOCK_OP_RESPONSE, 0));
	close_guest(&early);
	next = connected_to(1);
	close_guest(&next);
}

/* A queue that the driver spoils ends the device until its reset, and with it the streams. */
static void case_broken_queue(void)
{
	struct end open = connected_to(1), next;
	struct driver_ring *ring = &driver.ring[VSOCK_TX];
	uint16_t *idx = (uint16_t *)(driver.memory.region[0].host + ring->avail_at) + 1;

	*idx = (uint16_t)(*idx + 1000);
	driver.device->ops->notify(driver.device, VSOCK_TX);
	driver_settle();
	CHECK(driver.broken == 1 && at_end(open.fd));
	close(open.fd);
	next = ask(5);
	CHECK(last_event(DRIVER_REFUSED).port == 5);
	close(next.fd);
	driver_reset();
	driver_start(event_idx, UINT32_MAX);
	next = connected_to(1);
	close_guest(&next);
}

static void case_too_small_a_buffer(void)
{
	struct driver_ring *ring = &driver.ring[VSOCK_RX];
	struct end end;
	uint16_t head;
	uint32_t *len;

	driver_reset();
	driver_start(event_idx, 1);
	/* the first descriptor of the buffer: its length, and no next one */
	memcpy(&head, driver.memory.region[0].host + ring->avail_at + 4, sizeof(head));
	len = (uint32_t *)(driver.memory.region[0].host + ring->desc_at + 16ULL * head + 8);
	len[0] = sizeof(struct vsock_header) - 1;
	len[1] = 2;
	end = ask(1);
	driver_settle();
	CHECK(driver.broken == 1);
	CHECK(last_event(DRIVER_REFUSED).port == 1 && at_end(end.fd));
	close(end.fd);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "accept", case_accept },
	{ "answer-before-the-question", case_answer_before_the_question },
	{ "broken-queue", case_broken_queue },
	{ "bulk", case_bulk },
	{ "changes-in-the-line", case_changes_in_the_line },
	{ "connect", case_connect },
	{ "credit-overrun", case_credit_overrun },
	{ "credit-request", case_credit_request_is_answered },
	{ "credit-wraps", case_credit_wraps },
	{ "fair-rounds", case_rounds_are_fair },
	{ "few-credit-updates", case_few_credit_updates },
	{ "flood-of-requests", case_flood_of_requests },
	{ "flood-of-strays", case_flood_of_strays },
	{ "full-queues", case_full_queues },
	{ "guest-closes-before-a-slow-reader", case_guest_closes_before_a_slow_reader },
	{ "guest-half-closes", case_guest_half_closes },
	{ "guest-resets-before-a-slow-reader", case_guest_resets_before_a_slow_reader },
	{ "guest-stops-reading", case_guest_stops_reading },
	{ "host-closes-after-its-half", case_host_closes_after_its_half },
	{ "host-closes-with-bytes-under-way", case_host_closes_with_bytes_under_way },
	{ "host-gone-before-the-answer", case_host_gone_before_the_answer },
	{ "host-gone-before-the-question", case_host_gone_before_the_question },
	{ "host-half-closes", case_host_half_closes },
	{ "host-stops-reading", case_host_stops_reading },
	{ "listeners-bounded", case_listeners_bounded },
	{ "many", case_many },
	{ "no-credit", case_no_credit },
	{ "no-overtaking", case_no_overtaking },
	{ "packets-that-break-their-stream", case_packets_that_break_their_stream },
	{ "refused", case_refused },
	{ "refused-without-driver", case_refused_without_driver },
	{ "reset", case_reset },
	{ "stalled-guest", case_stalled_guest },
	{ "stalled-host", case_stalled_host },
	{ "stray-packets", case_stray_packets },
	{ "too-small-a-buffer", case_too_small_a_buffer },
	{ "transport-reset", case_transport_reset },
};

static uint32_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t n = 0;

	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Nothing may be left of any stream, but what a case left open itself. */
static void run(void (*one)(void), bool events, bool single)
{
	uint32_t before = open_fds();

	event_idx = events;
	driver_new();
	driver.single = single;
	driver_start(events, UINT32_MAX);
	one();
	driver_settle();
	driver_free();
	if (one != case_rounds_are_fair && open_fds() != before)
		driver_fail("%u descriptors are left over", open_fds() - before);
}

int main(int argc, char **argv)
{
	struct rlimit limit;

	if (argc == 2 && !strcmp(argv[1], "--list")) {
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
			puts(cases[i].name);
		return 0;
	}
	if (getrlimit(RLIMIT_NOFILE, &limit))
		driver_fail("getrlimit: %s", strerror(errno));
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		driver_fail("setrlimit: %s", strerror(errno));
	for (size_t i = 0; argc == 2 && i < sizeof(cases) / sizeof(cases[0]); i++)
		if (!strcmp(argv[1], cases[i].name)) {
			run(cases[i].run, true, false);
			run(cases[i].run, false, true);
			run(cases[i].run, true, true);
			return 0;
		}
	fputs("usage: vsock_cases --list | CASE\n", stderr);
	return 2;
}
